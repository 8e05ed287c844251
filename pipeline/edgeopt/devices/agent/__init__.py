"""The program that measures on the device itself, packed into one file and sent there.

Standard library and numpy only, Python 3.8 and newer. Inside the packed file this package is
called ``edgeopt_agent`` and stands alone: it imports nothing of edgeopt, and edgeopt talks to it
through ``job.json`` and ``result.json`` only.
"""

PROTOCOL = 1
VERSION = "1"
