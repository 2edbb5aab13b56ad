"""Python client of a modelsat server.

from modelsat import Client

with Client("127.0.0.1:50051") as client:
    print(client.route("If 3x + 7 = 22, what is x?").selected)
"""

from engine.api.policy import Policy, Session
from engine.client.aio import AsyncClient
from engine.client.requests import ModelsatClientError, Turn
from engine.client.sync import Client

__all__ = ["AsyncClient", "Client", "ModelsatClientError", "Policy", "Session", "Turn"]
