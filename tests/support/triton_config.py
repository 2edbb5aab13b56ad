"""Parse config.pbtxt files with Triton's own proto; print one JSON object, by name of the model.

.venv-deploy/bin/python tests/support/triton_config.py REPOSITORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

configs = {
    path.parent.name: text_format.Parse(path.read_text("utf-8"), ModelConfig())
    for path in Path(sys.argv[1]).glob("*/config.pbtxt")
}
print(json.dumps({name: json_format.MessageToDict(c) for name, c in configs.items()}))
