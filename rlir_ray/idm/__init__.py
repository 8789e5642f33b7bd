"""Inverse dynamics models (IDMs), which recover actions from frames: VPT's, and the correlation model of the judge."""
