"""The parts of flwr outside its public packages (app, clientapp, serverapp) that a server needs.

flwr 1.42: its logger, by which lines reach whoever streams the run, and the codes of its errors.
Either may move with any release.
"""

from flwr.common.constant import ErrorCode
from flwr.supercore import log

__all__ = ["ErrorCode", "log"]
