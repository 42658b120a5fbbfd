"""`python -m sparse_mlp_ds.doctor [REQUEST]` examines this host and prints what it found, on one line.

REQUEST holds the fields of `facts.Request` as JSON. The line starts with a mark that tells it from other
output of a login.
"""

import json
import sys
from dataclasses import asdict

from sparse_mlp_ds.doctor.facts import MARK, Request, look

if __name__ == "__main__":
    request = Request(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else Request()
    print(MARK + json.dumps(asdict(look(request))), flush=True)
