"""`python -m sparse_mlp_ds.doctor [REQUEST]` prints what this host says of itself, as one line.

REQUEST: the fields of `facts.Request` as JSON. A mark before the answer tells it from what else a login prints.
"""

import json
import sys
from dataclasses import asdict

from sparse_mlp_ds.doctor.facts import MARK, Request, look

if __name__ == "__main__":
    request = Request(**json.loads(sys.argv[1])) if len(sys.argv) > 1 else Request()
    print(MARK + json.dumps(asdict(look(request))), flush=True)
