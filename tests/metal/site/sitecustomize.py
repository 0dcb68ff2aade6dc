"""Python imports this at its start, where it is on the path: every process below finds the stand-in."""

import metal

metal.install()
