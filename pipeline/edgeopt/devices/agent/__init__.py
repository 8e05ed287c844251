"""The program that measures on the device, packed into one file and sent there.

Standard library and numpy only, Python 3.8 or newer. In the packed file this package is named
``edgeopt_agent`` and is self-contained: it imports nothing of edgeopt, and they communicate only
through ``job.json`` and ``result.json``, whose types are in ``protocol``.
"""

VERSION = "1"
