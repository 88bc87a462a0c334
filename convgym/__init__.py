"""convgym: a Gymnasium suite of conversations with verified rewards.

>>> import gymnasium as gym, convgym
>>> env = gym.make("convgym/SlotFilling-v0")
>>> obs, info = env.reset(seed=7)
>>> [message["role"] for message in info["messages"]]
['system', 'user']
"""

from convgym.registration import ENVIRONMENTS, register_all

__all__ = ["ENVIRONMENTS", "__version__"]
__version__ = "0.1.0"

register_all()
