"""The embedded Doom world: engine, scripted player, recorder and source of prompts."""
