"""What a machine of a whole distribution is asked, from within, when its boot is over: a cloud-init overlay."""

from __future__ import annotations

from pathlib import Path

from tests.support.collector import URL

_REPORT = """#cloud-config
write_files:
  - path: /usr/local/sbin/lab-report
    permissions: '0755'
    content: |
      #!/bin/sh
      state=$(timeout 300 systemctl is-system-running --wait)
      {
          echo "STATE $state"
          echo "FAILED $(systemctl --failed --no-legend --plain | cut -d' ' -f1 | tr '\\n' ' ')"
          echo "DBUS $(systemctl is-active dbus)"
          echo "MULTI-USER $(systemctl is-active multi-user.target)"
          echo "CLOUD-INIT $(cloud-init status)"
          echo "HOSTNAME $(hostname)"
          echo "MACHINE-ID $(cat /etc/machine-id)"
          echo "ADDRESSES $(ip -4 -o addr show scope global | sed 's/.*inet \\([0-9.]*\\).*/\\1/' | tr '\\n' ' ')"
          echo "ROOT $(findmnt -no FSTYPE /)"
          echo "LOWER $(findmnt -no FSTYPE,SOURCE /media/root-ro)"
          echo "HOST-KEY $(cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub)"
          echo "PASSWORDS $(cut -d: -f1,2 /etc/shadow | grep -v ':[!*]' | tr '\\n' ' ')"
          echo "UPTIME $(cut -d' ' -f1 /proc/uptime)"
          echo "-- for people --"
          cloud-init status --long; systemd-analyze time; ip -br addr; cat /proc/cmdline
          journalctl -b -p warning --no-pager | tail -60
      } > /run/lab-report.txt 2>&1
      curl -s --retry 5 --data-binary @/run/lab-report.txt COLLECTOR/report/$(cat /sys/class/net/e*/address)
runcmd:
  - [systemd-run, --no-block, --unit=lab-report, /usr/local/sbin/lab-report]
"""


def write_report(folder: Path) -> None:
    """Make the overlay: a report, POSTed to the collector as that of the machine's MAC, and read by `Report.field`."""
    folder.mkdir()
    (folder / "user-data").write_text(_REPORT.replace("COLLECTOR", URL))
