"""LangChain, pydantic-ai and LiteLLM, unmodified."""

import unittest

from pydantic import BaseModel

SERVER = None  # set by main.py


class Verdict(BaseModel):
    """A verdict on the question."""

    sure: bool


class LangChain(unittest.TestCase):
    def model(self, **options):
        from langchain_openai import ChatOpenAI

        return ChatOpenAI(
            base_url=SERVER.base_url, api_key="none", model="arges-nano", temperature=0, max_tokens=600, max_retries=0, **options
        )

    def test_it_asks_and_streams(self):
        self.assertIn("42", self.model().invoke("What is 17 + 25?").content)
        self.assertIn("42", "".join(chunk.content for chunk in self.model().stream("What is 17 + 25?")))

    def test_it_binds_tools_by_every_choice(self):
        for choice in ["any", "Verdict", "required"]:
            bound = self.model().bind_tools([Verdict], tool_choice=choice, parallel_tool_calls=False)
            calls = bound.invoke("Are you sure?").tool_calls
            self.assertEqual([call["name"] for call in calls], ["Verdict"])
            Verdict.model_validate(calls[0]["args"])

    def test_it_gets_structured_output_by_both_methods(self):
        for method in ["json_schema", "function_calling"]:
            structured = self.model().with_structured_output(Verdict, method=method)
            self.assertIsInstance(structured.invoke("Are you sure?"), Verdict)

    def test_its_stop_strings_end_an_answer(self):
        content = self.model().bind(stop=["42"]).invoke("What is 17 + 25?").content
        self.assertNotIn("42", content)


class PydanticAi(unittest.TestCase):
    def agent(self, **options):
        from pydantic_ai import Agent
        from pydantic_ai.models.openai import OpenAIChatModel
        from pydantic_ai.providers.openai import OpenAIProvider

        provider = OpenAIProvider(base_url=SERVER.base_url, api_key="none")
        settings = {"temperature": 0, "max_tokens": 600}
        return Agent(OpenAIChatModel("arges-nano", provider=provider), model_settings=settings, **options)

    def test_it_asks(self):
        self.assertIn("42", self.agent().run_sync("What is 17 + 25?").output)

    def test_its_output_type_is_a_tool_that_must_be_called(self):
        self.assertIsInstance(self.agent(output_type=Verdict).run_sync("Are you sure?").output, Verdict)

    def test_its_output_type_is_a_schema(self):
        from pydantic_ai import NativeOutput

        output = self.agent(output_type=NativeOutput(Verdict)).run_sync("Are you sure?").output
        self.assertIsInstance(output, Verdict)


class LiteLlm(unittest.TestCase):
    def complete(self, **request):
        import litellm

        fields = {"messages": [{"role": "user", "content": "What is 17 + 25?"}], "max_tokens": 600, "temperature": 0}
        return litellm.completion(model="openai/arges-nano", api_base=SERVER.base_url, api_key="none", **fields | request)

    def test_it_asks_and_finds_the_thinking(self):
        message = self.complete().choices[0].message
        self.assertIn("42", message.content)
        self.assertTrue(message.reasoning_content)

    def test_it_streams(self):
        chunks = list(self.complete(stream=True))
        self.assertIn("42", "".join(chunk.choices[0].delta.content or "" for chunk in chunks))

    def test_it_speaks_anthropics_api(self):
        import litellm

        answer = litellm.completion(
            model="anthropic/arges-nano",
            api_base=SERVER.root,
            api_key="none",
            messages=[{"role": "user", "content": "What is 17 + 25?"}],
            max_tokens=600,
            temperature=0,
        )
        self.assertIn("42", answer.choices[0].message.content)

    def test_it_forces_a_tool(self):
        tool = {"type": "function", "function": {"name": "judge", "parameters": Verdict.model_json_schema()}}
        choice = {"type": "function", "function": {"name": "judge"}}
        call = self.complete(tools=[tool], tool_choice=choice).choices[0].message.tool_calls[0]
        Verdict.model_validate_json(call.function.arguments)
