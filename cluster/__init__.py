"""Several nodes as one: ownership, placement, replication control, repair, failover.

A standalone pool needs none of it; the package is the layer between the faces (``nbd_plugin``,
``console``) and the store (``storage``), and implements protocols that ``storage`` defines.
"""
