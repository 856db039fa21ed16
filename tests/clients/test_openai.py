"""The OpenAI Python SDK, unmodified, and raw HTTP where the SDK would not send what is wrong."""

import asyncio
import http.client
import json
import time
import unittest

import openai

SERVER = None  # set by main.py

# Whatever the random model writes, it writes this much.
LENGTH = {"max_tokens": 48, "extra_body": {"ignore_eos": True}}


def client(**options) -> openai.OpenAI:
    return openai.OpenAI(base_url=SERVER.base_url, api_key="none", max_retries=0, timeout=120, **options)


def async_client() -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=SERVER.base_url, api_key="none", max_retries=0, timeout=300)


def model_id() -> str:
    return client().models.list().data[0].id


def messages(text: str) -> list:
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]


def wait_until_idle(seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        health = SERVER.get("/health")[1]
        if health["running"] == 0 and health["waiting"] == 0:
            return True
        time.sleep(0.02)
    return False


class Answers(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.model = model_id()

    def test_sixteen_streams_at_once_each_say_what_they_say_alone(self):
        # Of different lengths and different to the end: a random model mostly hears the last words.
        words = [[chr(97 + (i * 7 + j * j * 3) % 26) + str(i * j) for j in range(4 + i * 6)] for i in range(16)]
        prompts = [" ".join(prompt) for prompt in words]

        async def stream(client, prompt):
            """The text, and each token's log-probability, which tells apart what the text may not."""
            text, logprobs = "", []
            chunks = await client.chat.completions.create(
                model=self.model, messages=messages(prompt), temperature=0, stream=True, logprobs=True, **LENGTH
            )
            async for chunk in chunks:
                choice = chunk.choices[0]
                text += choice.delta.content or ""
                logprobs += [token.logprob for token in choice.logprobs.content] if choice.logprobs else []
            return text, logprobs

        async def run():
            async with async_client() as client:
                alone = [await stream(client, prompt) for prompt in prompts]
                running = asyncio.gather(*(stream(client, prompt) for prompt in prompts))
                most = 0
                while not running.done():
                    health = await asyncio.to_thread(SERVER.get, "/health")
                    most = max(most, health[1]["running"])
                return alone, await running, most

        alone, together, most = asyncio.run(run())
        self.assertTrue(all(len(logprobs) == 48 for _, logprobs in alone), "an answer is cut short")
        self.assertEqual(len({text for text, _ in alone}), 16, "answers do not depend on their prompts")
        self.assertGreater(most, 1, "the requests never ran at the same time")
        self.assertEqual(alone, together)

    def test_a_chat_answer_and_its_usage(self):
        answer = self.client.chat.completions.create(
            model=self.model, messages=messages("Hello"), temperature=0, **LENGTH
        )
        self.assertEqual(answer.choices[0].message.role, "assistant")
        self.assertEqual(answer.choices[0].finish_reason, "length")
        self.assertEqual(answer.usage.completion_tokens, 48)
        self.assertEqual(answer.usage.total_tokens, answer.usage.prompt_tokens + 48)
        self.assertEqual(answer.model, self.model)

    def test_a_stream_gives_the_same_text_and_its_usage_last(self):
        request = {"model": self.model, "messages": messages("Hello"), "temperature": 0, **LENGTH}
        whole = self.client.chat.completions.create(**request)
        chunks = list(
            self.client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **request)
        )
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage, whole.usage)
        self.assertTrue(all(chunk.usage is None for chunk in chunks[:-1]))

    def test_the_sdks_stream_helper_accumulates_an_answer(self):
        request = {"model": self.model, "messages": messages("Hello"), "temperature": 0, **LENGTH}
        whole = self.client.chat.completions.create(**request)
        with self.client.chat.completions.stream(**request) as stream:
            stream.until_done()
            final = stream.current_completion_snapshot
        self.assertEqual(final.choices[0].message.content, whole.choices[0].message.content)

    def test_completions_of_text_of_ids_and_of_several_prompts(self):
        def complete(prompt):
            answer = self.client.completions.create(model=self.model, prompt=prompt, temperature=0, **LENGTH)
            return [choice.text for choice in answer.choices]

        one, two = complete("once upon a time"), complete([72, 101, 108])
        self.assertEqual(complete([[72, 101, 108], [72, 101, 108]]), two * 2)
        self.assertEqual(complete(["once upon a time", "x"])[:1], one)
        streamed = self.client.completions.create(
            model=self.model, prompt="once upon a time", temperature=0, stream=True, **LENGTH
        )
        self.assertEqual("".join(chunk.choices[0].text for chunk in streamed), one[0])

    def test_a_seed_repeats_and_n_answers_differ(self):
        def answers(n):
            answer = self.client.chat.completions.create(
                model=self.model, messages=messages("Hello"), seed=11, n=n, **LENGTH
            )
            return [choice.message.content for choice in answer.choices]

        three = answers(3)
        self.assertEqual(answers(3), three)
        self.assertEqual(answers(1), three[:1])
        self.assertEqual(len(set(three)), 3)

    def test_a_stop_string_is_not_part_of_the_answer(self):
        request = {"model": self.model, "prompt": "once upon a time", "temperature": 0, **LENGTH}
        text = self.client.completions.create(**request).choices[0].text
        stop = text[len(text) // 2 :][:2]
        choice = self.client.completions.create(stop=[stop, "zzzzzz"], **request).choices[0]
        self.assertEqual((choice.text, choice.finish_reason), (text[: text.index(stop)], "stop"))

    def test_logprobs_of_chat_and_of_an_echoed_prompt(self):
        chat = self.client.chat.completions.create(
            model=self.model, messages=messages("Hi"), temperature=0, logprobs=True, top_logprobs=3, **LENGTH
        )
        tokens = chat.choices[0].logprobs.content
        self.assertEqual(len(tokens), 48)
        self.assertTrue(all(len(token.top_logprobs) == 3 for token in tokens))
        self.assertTrue(all(token.top_logprobs[0].logprob == token.logprob for token in tokens))
        prompt = [72, 101, 108, 108, 111]
        echoed = self.client.completions.create(
            model=self.model, prompt=prompt, echo=True, logprobs=1, max_tokens=1, temperature=0
        )
        logprobs = echoed.choices[0].logprobs
        self.assertEqual(len(logprobs.token_logprobs), len(prompt) + 1)
        self.assertIsNone(logprobs.token_logprobs[0])
        self.assertTrue(all(logprob < 0 for logprob in logprobs.token_logprobs[1:]))
        self.assertTrue(echoed.choices[0].text.startswith("Hello"))

    def test_a_prompt_of_one_token(self):
        answer = self.client.completions.create(model=self.model, prompt=[72], max_tokens=3)
        self.assertEqual(answer.usage.prompt_tokens, 1)

    def test_tools_and_their_results_are_part_of_the_conversation(self):
        tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
        call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
        talk = messages("1 + 1?")
        bare = self.client.chat.completions.create(model=self.model, messages=talk, max_tokens=1)
        shown = self.client.chat.completions.create(model=self.model, messages=talk, tools=[tool], max_tokens=1)
        talk += [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]
        told = self.client.chat.completions.create(model=self.model, messages=talk, tools=[tool], max_tokens=1)
        lengths = [answer.usage.prompt_tokens for answer in (bare, shown, told)]
        self.assertEqual(lengths, sorted(set(lengths)))

    def test_the_model_is_retrieved_by_its_id(self):
        self.assertEqual(self.client.models.retrieve(self.model).id, self.model)


class Errors(unittest.TestCase):
    def setUp(self):
        self.client = client()
        self.model = model_id()

    def tearDown(self):
        """The server is up after every one of these."""
        answer = self.client.completions.create(model=self.model, prompt="x", max_tokens=1)
        self.assertEqual(len(answer.choices), 1)

    def refused(self, kind, **request):
        fields = {"model": self.model, "messages": messages("Hi"), "max_tokens": 1} | request
        with self.assertRaises(kind) as raised:
            self.client.chat.completions.create(**fields)
        return raised.exception

    def test_an_unknown_model(self):
        error = self.refused(openai.NotFoundError, model="gpt-nothing")
        self.assertEqual((error.code, error.param), ("model_not_found", "model"))

    def test_no_messages(self):
        self.assertEqual(self.refused(openai.BadRequestError, messages=[]).param, "messages")

    def test_an_over_long_prompt(self):
        context = self.client.models.list().data[0].max_model_len
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.completions.create(model=self.model, prompt=[72] * context, max_tokens=1)
        self.assertEqual((raised.exception.code, raised.exception.param), ("context_length_exceeded", "prompt"))
        long = messages("ab" * context * 4)
        self.assertEqual(self.refused(openai.BadRequestError, messages=long).code, "context_length_exceeded")

    def test_an_empty_prompt(self):
        for prompt in ("", [], [[]]):
            with self.assertRaises(openai.BadRequestError) as raised:
                self.client.completions.create(model=self.model, prompt=prompt, max_tokens=1)
            self.assertEqual(raised.exception.param, "prompt")

    def test_parameters_out_of_range_or_unsupported(self):
        schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "potato"}}}
        for param, value in [
            ("temperature", 5),
            ("top_p", 2),
            ("n", 0),
            ("top_logprobs", 3),
            ("stop", ["x"] * 50),
            ("response_format", schema),
            ("tool_choice", "required"),
        ]:
            self.assertEqual(self.refused(openai.BadRequestError, **{param: value}).param, param)

    def test_broken_json(self):
        for body in (b"{", b'{"messages": [}', b"\xff\xfe", b"[" * 100_000, b""):
            status, answer = SERVER.post("/v1/chat/completions", body)
            self.assertEqual((status, answer["error"]["code"]), (400, "invalid_json"), body[:20])

    def test_nothing_there_and_wrong_methods(self):
        for path, expected in (("/v1/nothing", 404), ("/v1/chat/completions", 405)):
            status, answer = SERVER.get(path)
            self.assertEqual((status, set(answer["error"])), (expected, {"message", "type", "param", "code"}))


class Connections(unittest.TestCase):
    def test_hanging_up_in_mid_stream_frees_the_slot(self):
        self.assertTrue(wait_until_idle())
        endless = {"model": model_id(), "prompt": "x", "extra_body": {"ignore_eos": True}, "max_tokens": 10**6}
        with client().completions.create(stream=True, **endless) as stream:
            chunks = iter(stream)
            for _ in range(3):
                next(chunks)
            self.assertEqual(SERVER.get("/health")[1]["running"], 1)
        self.assertTrue(wait_until_idle(), "the request still runs")

    def test_giving_up_on_a_whole_answer_frees_the_slot(self):
        self.assertTrue(wait_until_idle())
        body = json.dumps({"prompt": "x", "max_tokens": 10**6, "ignore_eos": True})
        with self.assertRaises(OSError):
            connection = http.client.HTTPConnection("127.0.0.1", SERVER.port, timeout=0.3)
            connection.request("POST", "/v1/completions", body)
            try:
                connection.getresponse()
            finally:
                connection.close()
        self.assertTrue(wait_until_idle(), "the request still runs")
