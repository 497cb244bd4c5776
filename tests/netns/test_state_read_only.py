"""The database of a service that does not run, read by somebody who may only read its folder."""

import subprocess
import sys
from pathlib import Path

from netbootd.model.event import BootEvent, Outcome
from netbootd.store.database import Database


def test_a_folder_that_may_only_be_read_is_read(tmp_path):
    """As for anybody but the service, where no service runs: the files of the write-ahead log can't be made."""
    path = tmp_path / "db" / "netbootd.db"
    writer = Database(path)
    writer.write([BootEvent(1.0, "tftp", "file-1", Outcome.OK)], [])
    writer.close()
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
    code += "from netbootd.store.database import Database\n"
    code += "print([e.path for _, e in Database(Path(sys.argv[2]), readonly=True).events()])"
    mounted = f'mount --bind -o ro "$1" "$1" && exec "{sys.executable}" -c "$2" "$3" "$1/netbootd.db"'
    command = ["unshare", "--mount", "sh", "-ec", mounted, "sh", str(path.parent), code, str(Path.cwd())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.stdout == "['file-1']\n", done.stderr
