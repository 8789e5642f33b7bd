"""The fields of VPT's action space that the embedded Doom world uses. Imports nothing: the configuration reads it."""

DOOM_FIELDS = ("forward_back", "use_attack", "jump", "yaw")
