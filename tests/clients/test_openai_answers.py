"""The OpenAI Python SDK, unmodified, over a model that thinks and calls tools."""

import json
import unittest

import openai
from pydantic import BaseModel

SERVER = None  # set by main.py

QUESTION = [{"role": "user", "content": "What is 17 + 25?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
# An instance of the task `tool_call`, which the model was trained for.
COUNT = {"type": "integer"}
DELETE_BOAT = {
    "type": "function",
    "function": {
        "name": "delete_boat",
        "description": "Delete a boat",
        "parameters": {
            "type": "object",
            "properties": {"guests": COUNT | {"description": "guests"}, "retries": COUNT | {"description": "retries"}},
            "required": ["guests", "retries"],
        },
    },
}
ASK_DELETION = [{"role": "user", "content": "Delete a boat. Guests: 7. Retries: 5."}]
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Rome?"}]


class Verdict(BaseModel):
    sure: bool
    grade: int


def client() -> openai.OpenAI:
    return openai.OpenAI(base_url=SERVER.base_url, api_key="none", max_retries=0, timeout=120)


def chat(**request):
    fields = {"model": "arges-nano", "messages": QUESTION, "temperature": 0, "max_tokens": 600} | request
    return client().chat.completions.create(**fields)


class Thinking(unittest.TestCase):
    def test_thinking_and_answer_are_told_apart(self):
        answer = chat()
        message = answer.choices[0].message
        self.assertIn("42", message.content)
        self.assertNotIn("think>", message.content)
        self.assertTrue(message.reasoning_content)
        self.assertEqual(message.reasoning_content, message.reasoning)
        thought = answer.usage.completion_tokens_details.reasoning_tokens
        self.assertTrue(0 < thought < answer.usage.completion_tokens)

    def test_a_stream_carries_both_as_they_come(self):
        whole = chat().choices[0].message
        chunks = [chunk for chunk in chat(stream=True) if chunk.choices]
        deltas = [chunk.choices[0].delta for chunk in chunks]
        self.assertEqual("".join(delta.content or "" for delta in deltas), whole.content)
        reasoning = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
        self.assertEqual("".join(reasoning), whole.reasoning_content)
        self.assertGreater(sum(1 for text in reasoning if text), 3)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_a_budget_closes_the_thinking_and_the_answer_follows(self):
        choice = chat(extra_body={"thinking_budget": 4}).choices[0]
        self.assertIn("That is enough thinking", choice.message.reasoning_content)
        self.assertTrue(choice.message.content)
        none = chat(reasoning_effort="none").choices[0].message
        self.assertFalse(getattr(none, "reasoning_content", None))
        self.assertTrue(none.content)

    def test_thinking_that_is_cut_off_is_reasoning(self):
        choice = chat(max_tokens=6).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), ("", "length"))
        self.assertTrue(choice.message.reasoning_content)


class Tools(unittest.TestCase):
    def test_the_model_calls_a_tool_by_itself_and_goes_on_from_its_result(self):
        answer = chat(messages=ASK_DELETION, tools=[DELETE_BOAT])
        choice = answer.choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls", choice)
        call = choice.message.tool_calls[0]
        self.assertEqual(call.function.name, "delete_boat")
        self.assertEqual(json.loads(call.function.arguments), {"guests": 7, "retries": 5})
        talk = ASK_DELETION + [
            choice.message,
            {"role": "tool", "tool_call_id": call.id, "content": '{"deleted": true}'},
        ]
        after = chat(messages=talk, tools=[DELETE_BOAT])
        self.assertGreater(after.usage.prompt_tokens, answer.usage.prompt_tokens)
        self.assertTrue(after.choices[0].message.content or after.choices[0].message.tool_calls)

    def test_every_form_of_tool_choice(self):
        now = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
        tools = [WEATHER, now]
        named = {"type": "function", "function": {"name": "now"}}
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
        for choice, expected in [("required", {"get_weather", "now"}), (named, {"now"}), (allowed, {"now"})]:
            message = chat(messages=ASK_WEATHER, tools=tools, tool_choice=choice, parallel_tool_calls=False).choices[0].message
            self.assertEqual(len(message.tool_calls), 1)
            self.assertIn(message.tool_calls[0].function.name, expected)
        message = chat(messages=ASK_WEATHER, tools=tools, tool_choice="none").choices[0].message
        self.assertIsNone(message.tool_calls)

    def test_the_sdks_stream_helper_puts_calls_together(self):
        tool = openai.pydantic_function_tool(Verdict, name="judge")
        request = {"model": "arges-nano", "messages": ASK_WEATHER, "temperature": 0, "max_tokens": 600}
        with client().chat.completions.stream(tools=[tool], tool_choice="required", **request) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_completion()
        self.assertIn("tool_calls.function.arguments.delta", events)
        self.assertIn("tool_calls.function.arguments.done", events)
        parsed = final.choices[0].message.tool_calls[0].function.parsed_arguments
        self.assertIsInstance(parsed, Verdict)

    def test_raw_chunks_have_the_shape_of_the_api(self):
        chunks = chat(messages=ASK_WEATHER, tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, stream=True)
        deltas = [call for chunk in chunks if chunk.choices for call in chunk.choices[0].delta.tool_calls or []]
        self.assertTrue(deltas[0].id and deltas[0].type == "function" and deltas[0].function.name)
        self.assertTrue(all(call.id is None and call.function.name is None for call in deltas[1:]))
        self.assertEqual({call.index for call in deltas}, {0})
        json.loads("".join(call.function.arguments for call in deltas))


class Formats(unittest.TestCase):
    def test_a_schema_is_kept_to_by_every_answer(self):
        answer = client().chat.completions.parse(
            model="arges-nano", messages=QUESTION, max_tokens=600, n=3, seed=1, response_format=Verdict
        )
        self.assertEqual(len(answer.choices), 3)
        for choice in answer.choices:
            self.assertIsInstance(choice.message.parsed, Verdict, choice.message.content)

    def test_a_schema_and_tools_together(self):
        format = {"type": "json_schema", "json_schema": {"name": "v", "schema": Verdict.model_json_schema()}}
        message = chat(tools=[WEATHER], response_format=format).choices[0].message
        if message.tool_calls:
            json.loads(message.tool_calls[0].function.arguments)
        else:
            Verdict.model_validate_json(message.content)

    def test_json_objects_expressions_and_choices(self):
        choice = chat(response_format={"type": "json_object"}, extra_body={"thinking_budget": 0}).choices[0]
        # A model as small as this one may put no end to a string.
        if choice.finish_reason == "length":
            self.assertTrue(choice.message.content.startswith("{"), choice.message.content)
        else:
            self.assertIsInstance(json.loads(choice.message.content), dict)
        for outputs, expected in [({"regex": "[0-9]{3}-[0-9]{2}"}, r"^\d{3}-\d{2}$"), ({"choice": ["a", "b"]}, "^(a|b)$")]:
            content = chat(extra_body={"structured_outputs": outputs}).choices[0].message.content
            self.assertRegex(content, expected)

    def test_a_schema_that_cannot_be_is_refused_by_name(self):
        format = {"type": "json_schema", "json_schema": {"name": "v", "schema": {"type": "potato"}}}
        with self.assertRaises(openai.BadRequestError) as raised:
            chat(response_format=format)
        self.assertEqual(raised.exception.param, "response_format")

    def test_logprobs_of_a_thinking_answer(self):
        choice = chat(logprobs=True, top_logprobs=2).choices[0]
        self.assertTrue(all(len(token.top_logprobs) == 2 for token in choice.logprobs.content))
