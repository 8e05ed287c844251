"""The agent: the program that measures on the device, packed into one file and sent there.

It requires only Python 3.8 or newer and numpy. In the packed file, this package is named ``edgeopt_agent``
and is self-contained: it imports nothing from edgeopt and communicates with it only through ``job.json`` and
``result.json``, whose types are defined in ``protocol``.
"""

VERSION = "1"
