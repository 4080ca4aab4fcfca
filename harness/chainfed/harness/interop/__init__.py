"""Named cases that any device has to pass: it is a command, started, disturbed and watched from outside.

Between the device and a real coordinator stands a proxy that loses connections and answers; what a device has done is
read from its calls and from the journal in its state folder, so that no case depends on how the device is written.
"""
