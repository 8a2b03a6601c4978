"""The extent store's Python face: pool, catalog, drives, control socket, errors, units.

Who uses whom, downwards only:
control → service ← pool → (catalog, drives, `_core`) → (units, errors).
Nothing here knows of nbdkit, of the terminal or of environment variables.
"""
