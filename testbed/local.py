"""This machine as a host, without ssh: for trying things out with both ends on one machine."""

from hosts import Failure
from remote import Remote


class Local(Remote):
    """What a Remote does, done here. Two of them share a machine, but neither directories nor guests."""

    def __init__(self, name):
        super().__init__(name, addresses={"4": "127.0.0.1", "6": "::1"})

    def ssh(self, *arguments):
        """The first argument is the host, the next, if any, a command line."""
        return ["bash", "-c", *arguments[1:]]

    def connect(self):
        """There is nothing to connect to."""

    def call(self, command, seconds, **streams):
        try:
            return super().call(command, seconds, **streams)
        except Failure as failure:
            raise Failure(str(failure).replace("cannot be reached by ssh", "could not run a command here")) from None
