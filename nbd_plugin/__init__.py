"""The NBD face of Nearstone: nbdkit's entry script and the program that starts nbdkit.

``plugin.py`` is run by nbdkit as its script and is never imported by the rest of Nearstone;
``launcher.py`` is what ``nearstone serve`` calls.
"""
