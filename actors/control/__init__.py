"""Control of a run while it trains: commands from another process, and scaling of the pools."""
