"""The inside of the sandbox: runs in a fresh interpreter as the package ``jail`` and imports nothing of dmax.

``warden`` builds the walls, ``judge`` starts and watches the runner, ``runner`` locks itself in, then runs the program.
"""
