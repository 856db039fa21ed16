"""Many clients at once, some of which go away: answers stay what they are alone, nobody starves, memory stays.

LOAD_SECONDS says for how long, 20 by default, and LOAD_CLIENTS how many, 200. `tests/load/run` takes ten minutes.
"""

import asyncio
import os
import random
import statistics
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
    """Different greedy requests: sums, calls that must be made, documents; prompts and answers short and long."""
    lengths = random.Random(1)
    kinds = []
    for number in range(16):
        padding = " please" * int(lengths.lognormvariate(3, 1.2))
        question = {"messages": [{"role": "user", "content": f"What is {number * 7} + {number * 3}?{padding}"}]}
        kinds.append(question)
        kinds.append(question | {"tools": [tool(number)], "tool_choice": "required", "parallel_tool_calls": False})
        schema = {"name": "x", "schema": tool(number)["function"]["parameters"]}
        kinds.append(question | {"response_format": {"type": "json_schema", "json_schema": schema}})
    for kind in kinds:
        budget = {"thinking_budget": lengths.choice([0, 10, 40])}
        kind |= {"model": "arges-nano", "temperature": 0, "max_tokens": lengths.randint(20, 240), "extra_body": budget}
    return kinds


def said(answer) -> tuple:
    message = answer.choices[0].message
    calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
    return message.content or "", getattr(message, "reasoning", None) or "", calls, answer.choices[0].finish_reason


async def streamed(client, request: dict, give_up_after: int | None):
    """What a stream says, put together, and the seconds to its first piece; None if it is given up at that chunk."""
    start, first = time.monotonic(), None
    content, reasoning, calls, finish_reason = "", "", [], None
    async with await client.chat.completions.create(**request, stream=True) as stream:
        chunks = 0
        async for chunk in stream:
            chunks += 1
            if give_up_after is not None and chunks > give_up_after:
                return None, first
            for choice in chunk.choices:
                delta = choice.delta
                thought = getattr(delta, "reasoning", None) or ""
                if first is None and (delta.content or thought or delta.tool_calls):
                    first = time.monotonic() - start
                content += delta.content or ""
                reasoning += thought
                for call in delta.tool_calls or []:
                    if call.id:
                        calls.append((call.function.name, ""))
                    name, arguments = calls[-1]
                    calls[-1] = name, arguments + (call.function.arguments or "")
                finish_reason = choice.finish_reason or finish_reason
    return (content, reasoning, calls, finish_reason), first


def most_overtaken(spans: list[tuple[float, float]]) -> int:
    """The most requests that were sent after one and got their first piece before it."""
    return max(sum(start < later and other < first for later, other in spans) for start, first in spans)


class Load(unittest.TestCase):
    def test_many_clients_at_once(self):
        seen = asyncio.run(self.load())
        first = sorted(seen["first"])
        p50, p99 = statistics.median(first), first[int(len(first) * 0.99)]
        overtaken = most_overtaken(seen["spans"])
        print(
            f"{CLIENTS} clients, {SECONDS:.0f} s: {seen['answers']} answers, {seen['refused']} refused,"
            f" {seen['cancelled']} given up; first token p50 {p50:.2f} s, p99 {p99:.2f} s, latest {first[-1]:.2f} s;"
            f" overtaken by {overtaken} at most;"
            f" answers of a client {min(seen['by_client'])} to {max(seen['by_client'])}; resident MiB idle"
            f" {seen['warm']} after a tenth and {seen['end']} at the end, and in between {seen['memory']}",
            flush=True,
        )
        self.assertGreater(seen["answers"], 20)
        self.assertGreater(seen["cancelled"], 5)
        # Nobody waits while those are served who came later, however slow the machine is at the time.
        self.assertLess(overtaken, CLIENTS, "a request starved")
        if SECONDS > 20 * p50:
            self.assertGreater(min(seen["by_client"]), 0, "a client got no answer")
        # What the same clients have taken in the first tenth, nothing adds to: idle both times.
        self.assertLess(seen["end"], seen["warm"] * 1.05 + 8)

    async def load(self) -> dict:
        kinds = requests()
        limits = {"max_retries": 0, "timeout": 600}
        rngs = [random.Random(number) for number in range(CLIENTS)]
        seen = {"answers": 0, "refused": 0, "cancelled": 0, "first": [], "spans": [], "by_client": [0] * CLIENTS}
        async with openai.AsyncOpenAI(base_url=SERVER.base_url, api_key="none", **limits) as client:
            alone = [said(await client.chat.completions.create(**request)) for request in kinds]

            async def ask(rng: random.Random, kind: int):
                """An answer, or None if the client went away before it was whole."""
                if rng.random() < 0.5:
                    started = time.monotonic()
                    give_up_after = rng.randrange(40) if rng.random() < 0.3 else None
                    answer, first = await streamed(client, kinds[kind], give_up_after)
                    if first is not None:
                        seen["first"].append(first)
                        seen["spans"].append((started, started + first))
                    return answer
                asked = asyncio.ensure_future(client.chat.completions.create(**kinds[kind]))
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random() * 2)
                    if not asked.done():
                        asked.cancel()
                        await asyncio.gather(asked, return_exceptions=True)
                        return None
                return said(await asked)

            async def run(number: int, deadline: float):
                rng = rngs[number]
                while time.monotonic() < deadline:
                    kind = rng.randrange(len(kinds))
                    try:
                        answer = await ask(rng, kind)
                    except openai.RateLimitError as error:
                        self.assertIn("retry-after", error.response.headers)
                        seen["refused"] += 1
                        await asyncio.sleep(rng.random())
                        continue
                    if answer is None:
                        seen["cancelled"] += 1
                        continue
                    self.assertEqual(answer, alone[kind])
                    seen["answers"] += 1
                    seen["by_client"][number] += 1

            async def watch(deadline: float) -> list[int]:
                memory = []
                while time.monotonic() < deadline:
                    await asyncio.sleep(SECONDS / 10)
                    memory.append(SERVER.resident_mib())
                return memory

            async def run_all(seconds: float) -> tuple[int, list[int]]:
                """Resident memory in the end, when nothing is left to do, and before."""
                deadline = time.monotonic() + seconds
                memory = asyncio.ensure_future(watch(deadline))
                await asyncio.gather(*(run(number, deadline) for number in range(CLIENTS)))
                self.assertTrue(await self.idle(), "requests are left behind")
                return SERVER.resident_mib(), await memory

            seen["warm"], _ = await run_all(SECONDS / 10)
            seen["end"], seen["memory"] = await run_all(SECONDS * 0.9)
            return seen

    async def idle(self) -> bool:
        for _ in range(500):
            health = SERVER.get("/health")[1]
            if health["running"] == 0 and health["waiting"] == 0:
                return True
            await asyncio.sleep(0.02)
        return False
