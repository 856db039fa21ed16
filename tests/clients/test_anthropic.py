"""The Anthropic Python SDK, unmodified."""

import json
import unittest

import anthropic

SERVER = None  # set by main.py

WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
THINKING = {"type": "enabled", "budget_tokens": 400}


def client() -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=SERVER.root, api_key="none", max_retries=0, timeout=120)


def fields(text: str = "What is 17 + 25?", **request) -> dict:
    messages = [{"role": "user", "content": text}]
    # The SDK has no temperature of its own any more, but sends what it is given.
    request = {"extra_body": {"temperature": 0}} | request
    return {"model": "arges-nano", "max_tokens": 600, "messages": messages} | request


class Messages(unittest.TestCase):
    def test_a_message(self):
        message = client().messages.create(**fields())
        self.assertEqual([block.type for block in message.content], ["text"])
        self.assertIn("42", message.content[0].text)
        self.assertEqual(message.stop_reason, "end_turn")

    def test_thinking_is_a_block_of_its_own_where_it_is_asked_for(self):
        message = client().messages.create(**fields(thinking=THINKING))
        self.assertEqual([block.type for block in message.content], ["thinking", "text"])
        self.assertTrue(message.content[0].thinking)

    def test_a_stream_accumulates_to_the_same_message(self):
        whole = client().messages.create(**fields(thinking=THINKING))
        with client().messages.stream(**fields(thinking=THINKING)) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_message()
        texts = [[block.to_dict() for block in message.content] for message in (final, whole)]
        self.assertEqual(*[[{k: v for k, v in block.items() if v is not None} for block in blocks] for blocks in texts])
        self.assertEqual((final.stop_reason, final.usage.output_tokens), (whole.stop_reason, whole.usage.output_tokens))
        self.assertTrue({"thinking", "text", "content_block_stop", "message_stop"} <= set(events), set(events))

    def test_tools_are_called_streamed_and_gone_on_from(self):
        request = fields("What is the weather in Rome?", tools=[WEATHER], tool_choice={"type": "any"}, thinking=THINKING)
        with client().messages.stream(**request) as stream:
            partial = [event.partial_json for event in stream if event.type == "input_json"]
            final = stream.get_final_message()
        call = final.content[-1]
        self.assertEqual((call.type, call.name, final.stop_reason), ("tool_use", "get_weather", "tool_use"))
        self.assertIn(call.input["city"], ["Paris", "Rome"])
        self.assertGreater(len(partial), 1)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "sunny"}]}
        talk = request["messages"] + [
            {"role": "assistant", "content": final.content},
            {"role": "user", "content": [result]},
        ]
        after = client().messages.create(**request | {"messages": talk, "tool_choice": {"type": "auto"}})
        # What was kept of the first request is counted apart.
        before, now = (u.input_tokens + u.cache_read_input_tokens for u in (final.usage, after.usage))
        self.assertGreater(now, before)

    def test_a_schema_is_kept_to(self):
        schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"], "additionalProperties": False}
        format = {"type": "json_schema", "schema": schema}
        message = client().messages.create(**fields(output_config={"effort": "low", "format": format}))
        self.assertIn(json.loads(message.content[0].text)["sure"], [True, False])

    def test_tokens_are_counted_as_the_answer_counts_them(self):
        request = fields(system="Be brief.", tools=[WEATHER])
        message = client().messages.create(**request)
        counted = {key: value for key, value in request.items() if key not in ("max_tokens", "extra_body")}
        self.assertEqual(client().messages.count_tokens(**counted).input_tokens, message.usage.input_tokens)

    def test_errors_are_those_the_sdk_knows(self):
        with self.assertRaises(anthropic.NotFoundError):
            client().messages.create(**fields(model="claude"))
        with self.assertRaises(anthropic.BadRequestError) as raised:
            client().messages.create(**fields(extra_body={"temperature": 5}))
        self.assertIn("temperature", raised.exception.message)
