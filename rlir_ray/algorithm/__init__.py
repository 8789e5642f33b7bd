"""The algorithm in plain functions: advantages, losses, off-policy correction, admission, ledger, seeds. No models."""
