"""For clients that are not ours: what a plain gRPC channel must be told so that a pod's loss is no error of its calls.

    channel = grpc.insecure_channel("ipv4:10.0.0.1:8033,10.0.0.2:8033", [("grpc.service_config", SERVICE_CONFIG)])

The channel then goes round over all addresses, and repeats a call elsewhere that ended with UNAVAILABLE or CANCELLED.
Both say that a pod is going, or was lost; inference has no effect, so asking twice is safe. gRPC repeats a call five
times at most. `tritonclient.grpc` takes the same pair in `channel_args`; other languages take the same JSON.

It watches each pod's health, too (`grpc.health.v1`), so that it leaves a pod that drains before that one stops.

A name that resolves to all pods (`dns:///hexcomb-pods:8033`, a headless service) does as well as a list.
"""

from __future__ import annotations

import json

SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{"service": "inference.GRPCInferenceService"}],
                "retryPolicy": {
                    "maxAttempts": 5,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
)
