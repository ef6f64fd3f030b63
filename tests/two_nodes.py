"""Two machines on one, for the tests: start the command behind this file twice, as `srun --ntasks-per-node=1` does on two nodes. The machines find their
numbers themselves; none is called 0 here, for accelerate's 0 refuses a port at which the other, on the same machine, may wait already."""
import os
import subprocess
import sys

processes = [subprocess.Popen(sys.argv[1:], env={**os.environ, "NODE_RANK": str(rank + 1)}) for rank in range(2)]
sys.exit(max(abs(process.wait()) for process in processes))
