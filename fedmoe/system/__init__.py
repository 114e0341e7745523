"""Files, locks, digests and processes of this machine; nothing here imports torch.

In reading order:
    files.py, json_text.py    files that are replaced whole, and strict JSON for them
    locks.py, folders.py      locks that end with their process; folders that appear whole
    digests.py                a digest of the installed code
    checksums.py              checksums of large buffers, against damage
    background.py             jobs in a thread beside the caller
    machine.py                memory, threads and kind of processor
    control_groups.py         what a container leaves of them
    processes.py              running processes, told apart
    workforce.py              forked workers that are replaced when they die
"""
