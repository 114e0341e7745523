"""Virtual devices: every simulated client has its own clock, whatever machine simulates it.

In reading order:
    device.py    what a device can do: FLOP/s, memory, links, availability
    clock.py     how long a client's round would take on its device
    timeline.py  the order in which clients finish when nobody waits for a round's slowest

To add a device, write `configs/devices/<name>.yaml` with the source of its figures.
"""

from fedmoe.devices.device import Device

__all__ = ["Device"]
