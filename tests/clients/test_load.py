"""Many clients at once, some of which go away: answers stay what they are alone, and memory what it was.

LOAD_SECONDS says for how long, 20 by default, and LOAD_CLIENTS how many, 200.
"""

import asyncio
import os
import random
import time
import unittest

import openai

SERVER = None  # set by main.py

SECONDS = float(os.environ.get("LOAD_SECONDS", 20))
CLIENTS = int(os.environ.get("LOAD_CLIENTS", 200))

CHOICE = {"type": "string", "enum": ["red", "green", "blue"]}


def tool(number: int) -> dict:
    properties = {f"field_{field}": CHOICE for field in range(1 + number % 3)}
    parameters = {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    return {"type": "function", "function": {"name": f"tool_{number}", "parameters": parameters}}


def requests() -> list[dict]:
    """Different greedy requests: sums, calls that must be made, documents, and some that the queue may refuse."""
    kinds = []
    for number in range(16):
        question = {"messages": [{"role": "user", "content": f"What is {number * 7} + {number * 3}?" + " please" * (number * 9)}]}
        kinds.append(question)
        kinds.append(question | {"tools": [tool(number)], "tool_choice": "required", "parallel_tool_calls": False})
        schema = {"name": "x", "schema": tool(number)["function"]["parameters"]}
        kinds.append(question | {"response_format": {"type": "json_schema", "json_schema": schema}})
    more = {"model": "arges-nano", "temperature": 0, "max_tokens": 120, "extra_body": {"thinking_budget": 40}}
    return [request | more for request in kinds]


def said(answer) -> tuple:
    message = answer.choices[0].message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    return message.content, message.reasoning, calls, answer.choices[0].finish_reason


class Load(unittest.TestCase):
    def test_many_clients_at_once(self):
        answers, refused, cancelled, memory = asyncio.run(self.load())
        print(f"{answers} answers, {refused} refused, {cancelled} given up; resident MiB {memory}", flush=True)
        self.assertGreater(answers, 20)
        self.assertGreater(cancelled, 5)
        # What the first half has taken, the second does not add to.
        self.assertLess(memory[-1], memory[len(memory) // 2] * 1.1 + 8, memory)

    async def load(self):
        kinds = requests()
        options = {"base_url": SERVER.base_url, "api_key": "none", "max_retries": 0, "timeout": 300}
        async with openai.AsyncOpenAI(**options) as client:
            alone = [said(await client.chat.completions.create(**request)) for request in kinds]
            deadline = time.monotonic() + SECONDS
            counts = {"answers": 0, "refused": 0, "cancelled": 0}

            async def run(seed: int):
                rng = random.Random(seed)
                while time.monotonic() < deadline:
                    kind = rng.randrange(len(kinds))
                    asked = asyncio.ensure_future(client.chat.completions.create(**kinds[kind]))
                    if rng.random() < 0.3:
                        await asyncio.sleep(rng.random() * 2)
                        if not asked.done():
                            asked.cancel()
                            counts["cancelled"] += 1
                            await asyncio.gather(asked, return_exceptions=True)
                            continue
                    try:
                        answer = said(await asked)
                    except openai.RateLimitError as error:
                        self.assertIn("retry-after", error.response.headers)
                        counts["refused"] += 1
                        await asyncio.sleep(rng.random())
                        continue
                    self.assertEqual(answer, alone[kind])
                    counts["answers"] += 1

            async def watch() -> list[float]:
                memory = []
                while time.monotonic() < deadline:
                    memory.append(SERVER.resident_mib())
                    await asyncio.sleep(SECONDS / 10)
                return memory

            memory = asyncio.ensure_future(watch())
            await asyncio.gather(*(run(seed) for seed in range(CLIENTS)))
            self.assertTrue(await self.idle(), "requests are left behind")
            return *counts.values(), [*await memory, SERVER.resident_mib()]

    async def idle(self) -> bool:
        for _ in range(500):
            health = SERVER.get("/health")[1]
            if health["running"] == 0 and health["waiting"] == 0:
                return True
            await asyncio.sleep(0.02)
        return False
