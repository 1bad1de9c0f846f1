"""What the disk of a test bed's host holds when it starts: keys, shells, a copy of the source tree.

Owns the files and the script that puts them in place inside the host's own namespaces. Does not own
processes, networks or commands (hosts.py).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
HIDDEN = (Path("/tmp"), Path("/root"), Path("/run"), Path("/var/log"), Path("/dev/shm"))
SEARCH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# $1 the host's name, $2 its folder in the bed's, $3 where the source tree is seen, then what else must stay
# visible though a private folder or the copied source lies over it.
INIT = """
set -e
hostname "$1"; files="$2"; source="$3"; shift 3
mount -t tmpfs tmpfs /mnt
mkdir /mnt/bed; mount --bind "$(dirname "$files")" /mnt/bed; own="/mnt/bed/$(basename "$files")"
n=0; for path; do n=$((n+1)); mkdir "/mnt/$n"; mount --bind "$path" "/mnt/$n"; done
for file in hosts passwd shadow; do mount --bind "/mnt/bed/$file" "/etc/$file"; done
mount -o remount,bind,ro /
for place in /tmp /root /run /var/log /dev/shm; do mount -t tmpfs tmpfs "$place"; done
chmod 1777 /tmp /dev/shm; chmod 700 /root; mkdir -m 755 /run/sshd; touch /var/log/lastlog
cp -r "$own/." /root
mkdir -p "$source"; mount --bind /mnt/bed/source "$source"
n=0; for path; do n=$((n+1)); mkdir -p "$path"; mount --move "/mnt/$n" "$path"; done
mount -o remount,bind,ro "$source"
umount /mnt/bed; umount /mnt
exec "$(command -v sshd)" -D -e -f /root/.sshd/config
"""
SSHD = """
HostKey /root/.sshd/host_key
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UseDNS no
PrintMotd no
PrintLastLog no
PidFile none
MaxSessions 64
MaxStartups 64
Subsystem sftp internal-sftp
"""
PASSWD = """root:x:0:0:root:/root:/bin/bash
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/:/usr/sbin/nologin
"""


def prepare_bed(bed: Path) -> None:
    """What all hosts share: keys, names, and the source tree as it is now, whoever edits it meanwhile."""
    bed.mkdir(parents=True, exist_ok=True)
    for key in ("host_key", "id_ed25519"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "hosts", "-f", str(bed / key)]
        subprocess.run(command, check=True)
    (bed / "hosts").write_text("127.0.0.1 localhost\n")
    (bed / "passwd").write_text(PASSWD)
    (bed / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    (bed / "source").mkdir()
    unwanted = shutil.ignore_patterns("__pycache__", "tests", "runs", "dist", "node_modules")
    for part in SOURCE.iterdir():
        if part.name.startswith(".") or part.name in {"tests", "runs", "dist"}:
            continue
        if part.is_dir():
            shutil.copytree(part, bed / "source" / part.name, ignore=unwanted)
        else:
            shutil.copy(part, bed / "source")


def prepare_host(bed: Path, folder: str, *, with_key: bool) -> Path:
    """The home folder that a host starts with, in the bed; `with_key` lets it log in on the others."""
    root = bed / folder
    for part in (".ssh", ".sshd", "bin"):
        (root / part).mkdir(parents=True, mode=0o700)
    (root / ".sshd" / "config").write_text(SSHD)
    shutil.copy(bed / "host_key", root / ".sshd")
    (root / ".ssh" / "authorized_keys").write_text((bed / "id_ed25519.pub").read_text())
    (root / ".ssh" / "known_hosts").write_text(f"* {(bed / 'host_key.pub').read_text()}")
    if with_key:
        shutil.copy(bed / "id_ed25519", root / ".ssh")
    lines = [f". {sys.prefix}/bin/activate", "PS1='$ '"]
    if not (Path(sys.prefix) / "bin" / "barnraise").exists():
        script = root / "bin" / "barnraise"
        script.write_text(
            f"#!{sys.executable}\nimport sys\nfrom pipeline.cli import main\nsys.exit(main())\n"
        )
        script.chmod(0o755)
        lines.append("PATH=$PATH:/root/bin")
    (root / ".bashrc").write_text("\n".join(lines) + "\n")
    (root / ".profile").write_text(". ~/.bashrc\n")
    return root


def visible() -> list[Path]:
    """This interpreter's folders, as far as a host would not see them by itself."""
    covers = (*HIDDEN, SOURCE)
    return [
        path
        for path in sorted({Path(sys.prefix), Path(sys.base_prefix)})
        if any(path.is_relative_to(cover) for cover in covers)
    ]
