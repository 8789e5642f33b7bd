"""The VPT action space, and the action inputs that world models take."""
