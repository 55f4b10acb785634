"""Machines that are one: network namespaces of Linux, which need root."""

import os
import shutil
import subprocess
from pathlib import Path


class Hosts:
    """Machines as far as a network is concerned, each with a cable to one switch."""

    def __init__(self, count):
        self.names = [f"fmnist-{os.getpid()}-{i}" for i in range(count)]
        self.switch = f"fmnist-{os.getpid()}-switch"
        self.folders = [Path("/etc/netns") / name for name in self.names]

    def make(self):
        """Tell whether this machine lets us."""
        if os.geteuid() or shutil.which("ip") is None or not _ip("netns", "add", self.switch):
            return False
        done = [_ip("netns", "add", name) for name in self.names]
        done.append(_ip("-n", self.switch, "link", "add", "switch", "type", "bridge"))
        done.append(_ip("-n", self.switch, "link", "set", "switch", "up"))
        for i, (name, folder) in enumerate(zip(self.names, self.folders, strict=True)):
            address, port = f"10.93.0.{i + 1}", f"port{i}"
            there = ("peer", "name", port, "netns", self.switch)
            done.append(_ip("link", "add", "cable", "netns", name, "type", "veth", *there))
            done.append(_ip("-n", self.switch, "link", "set", port, "master", "switch", "up"))
            done.append(_ip("-n", name, "address", "add", f"{address}/24", "dev", "cable"))
            done += [_ip("-n", name, "link", "set", link, "up") for link in ("lo", "cable")]
            folder.mkdir(parents=True)
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{address} {os.uname().nodename}\n")
        assert all(done)
        return True

    def cable(self, number, state):
        """Cut the cable of a machine, or mend it: "down" or "up"."""
        assert _ip("-n", self.switch, "link", "set", f"port{number}", state)

    def remove(self):
        for name in (*self.names, self.switch):
            _ip("netns", "delete", name)
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def _ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0
