"""OpenAI's responses through its Python SDK, unmodified."""

import unittest

import openai
from pydantic import BaseModel

SERVER = None  # set by main.py

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather in a city.",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


class Verdict(BaseModel):
    sure: bool


def client() -> openai.OpenAI:
    return openai.OpenAI(base_url=SERVER.base_url, api_key="none", max_retries=0, timeout=120)


def fields(**request) -> dict:
    return {"model": "arges-nano", "input": "What is 17 + 25?", "temperature": 0, "max_output_tokens": 600} | request


class Responses(unittest.TestCase):
    def test_a_response_has_thinking_and_text(self):
        response = client().responses.create(**fields())
        self.assertEqual([item.type for item in response.output], ["reasoning", "message"])
        self.assertIn("42", response.output_text)
        self.assertGreater(response.usage.output_tokens_details.reasoning_tokens, 0)
        self.assertEqual(response.status, "completed")

    def test_the_sdks_stream_helper_accumulates_the_same_response(self):
        whole = client().responses.create(**fields())
        with client().responses.stream(**fields()) as stream:
            events = list(stream)
            final = stream.get_final_response()
        self.assertEqual(final.output_text, whole.output_text)
        deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        self.assertEqual(deltas, whole.output_text)
        thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
        self.assertEqual(thought, whole.output[0].content[0].text)
        done = [event.item.id for event in events if event.type == "response.output_item.done"]
        self.assertEqual(done, [item.id for item in final.output])

    def test_calls_are_streamed_and_their_results_sent_back(self):
        request = fields(input="What is the weather in Rome?", tools=[WEATHER], tool_choice="required", parallel_tool_calls=False)
        with client().responses.stream(**request) as stream:
            events = list(stream)
            final = stream.get_final_response()
        call = final.output[-1]
        self.assertEqual((call.type, call.name), ("function_call", "get_weather"))
        done = next(event for event in events if event.type == "response.function_call_arguments.done")
        self.assertEqual((done.arguments, done.item_id), (call.arguments, call.id))
        talk = [{"role": "user", "content": request["input"]}]
        talk += [item.model_dump(exclude_none=True, exclude={"parsed_arguments"}) for item in final.output]
        talk.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
        after = client().responses.create(**fields(input=talk, tools=[WEATHER]))
        self.assertGreater(after.usage.input_tokens, final.usage.input_tokens)

    def test_a_schema_is_kept_to(self):
        response = client().responses.parse(text_format=Verdict, **fields())
        self.assertIsInstance(response.output_parsed, Verdict)

    def test_what_is_not_kept_cannot_be_gone_on_from(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            client().responses.create(previous_response_id="resp_1", **fields())
        self.assertEqual(raised.exception.param, "previous_response_id")
