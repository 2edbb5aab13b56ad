"""The serving engine: contract > registry > scoring > policy > router > serving, one way."""
