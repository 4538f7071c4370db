"""Whether /dev/kvm executes guest code in hardware. Some only interpret it, at some million instructions per second:
a loop in a throw-away VM tells them apart."""

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import subprocess
import sys
import time

CREATE_VM, CREATE_VCPU, RUN, VCPU_MMAP_SIZE = 0xAE01, 0xAE41, 0xAE80, 0xAE04
SET_MEMORY, SET_TSS_ADDRESS, SET_REGS, GET_SREGS, SET_SREGS = 0x4020AE46, 0xAE47, 0x4090AE82, 0x8138AE83, 0x4138AE84
EXIT_HLT = 5
ROUNDS = 100_000
# mov $ROUNDS, %ecx; 1: dec %ecx; jnz 1b; hlt, in 16-bit mode
CODE = b"\x66\xb9" + struct.pack("<I", ROUNDS) + b"\x66\x49\x75\xfc\xf4"
ENOUGH = 50e6


def speed():
    """Instructions per second of guest code."""
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    vm = fcntl.ioctl(kvm, CREATE_VM, 0)
    fcntl.ioctl(vm, SET_TSS_ADDRESS, 0x20000)
    memory = mmap.mmap(-1, 4096)
    memory.write(CODE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fcntl.ioctl(vm, SET_MEMORY, struct.pack("<IIQQQ", 0, 0, 0x1000, 4096, address))
    vcpu = fcntl.ioctl(vm, CREATE_VCPU, 0)
    state = mmap.mmap(vcpu, fcntl.ioctl(kvm, VCPU_MMAP_SIZE, 0))
    sregs = bytearray(312)
    fcntl.ioctl(vcpu, GET_SREGS, sregs)
    struct.pack_into("<QIH", sregs, 0, 0, 0xFFFF, 0)
    fcntl.ioctl(vcpu, SET_SREGS, bytes(sregs))
    fastest = 0
    for _ in range(3):
        registers = bytearray(144)
        struct.pack_into("<QQ", registers, 128, 0x1000, 2)
        fcntl.ioctl(vcpu, SET_REGS, bytes(registers))
        began = time.perf_counter()
        fcntl.ioctl(vcpu, RUN, 0)
        took = time.perf_counter() - began
        reason = struct.unpack_from("<I", state, 8)[0]
        if reason != EXIT_HLT:
            raise OSError(f"the loop ended with exit reason {reason}, not {EXIT_HLT}")
        fastest = max(fastest, 2 * ROUNDS / took)
    return fastest


def reason_against():
    """Why /dev/kvm is not used, or None when it executes in hardware. Takes 5 s at most."""
    if platform.machine() != "x86_64":
        return f"this machine is {platform.machine()}, the virtual hosts are x86_64"
    if not os.path.exists("/dev/kvm"):
        return "there is no /dev/kvm"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm may not be opened (is this user in the group kvm?)"
    try:
        # In a process of its own, so that a KVM that hangs or crashes hurts nobody.
        done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=5)
        found = float(done.stdout or "nan")
    except (subprocess.TimeoutExpired, ValueError):
        return "/dev/kvm did not finish a short loop within 5 s"
    if found != found:
        return f"a short loop in a VM failed: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
    if found < ENOUGH:
        return f"/dev/kvm only interprets ({found / 1e6:.1f} million instructions per second)"
    return None


if __name__ == "__main__":
    print(speed())
