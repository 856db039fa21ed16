"""LangChain, pydantic-ai, LiteLLM and the OpenAI Agents SDK, unmodified."""

import asyncio
import unittest

from pydantic import BaseModel, ConfigDict

SERVER = None  # set by main.py


class Verdict(BaseModel):
    """A verdict on the question."""

    # Nothing else: a model as small as this one may put no end to a property of its own.
    model_config = ConfigDict(extra="forbid")
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


class Agents(unittest.TestCase):
    """OpenAI's Agents SDK, over responses and over chat."""

    def run_both(self, run):
        import agents
        import openai

        agents.set_tracing_disabled(True)
        for model in (agents.OpenAIResponsesModel, agents.OpenAIChatCompletionsModel):
            with self.subTest(model.__name__):
                client = openai.AsyncOpenAI(base_url=SERVER.base_url, api_key="none", max_retries=0)

                def agent(tool_choice=None, model=model("arges-nano", client), **options):
                    settings = agents.ModelSettings(
                        temperature=0, max_tokens=400, tool_choice=tool_choice, parallel_tool_calls=False
                    )
                    return agents.Agent(name="a", model=model, model_settings=settings, **options)

                async def run_and_close(client=client, agent=agent):
                    async with client:
                        await run(agents, agent)

                asyncio.run(run_and_close())

    def test_a_tool_is_called_and_the_conversation_sent_again(self):
        async def run(agents, agent):
            @agents.function_tool
            def delete_boat(guests: int, retries: int) -> str:
                """Delete a boat"""
                return f"deleted for {guests}"

            one = agent("required", tools=[delete_boat], tool_use_behavior="stop_on_first_tool")
            result = await agents.Runner.run(one, "Delete a boat. Guests: 7. Retries: 5.")
            self.assertEqual(result.final_output, "deleted for 7")
            talk = result.to_input_list() + [{"role": "user", "content": "What is 17 + 25?"}]
            # What so small a model says after a call is not to be relied on; that it is asked and answers is.
            self.assertTrue((await agents.Runner.run(agent(), talk)).final_output)

        self.run_both(run)

    def test_an_output_type_is_kept_to_and_an_answer_is_streamed(self):
        async def run(agents, agent):
            verdict = await agents.Runner.run(agent(output_type=Verdict), "Are you sure?")
            self.assertIsInstance(verdict.final_output, Verdict)
            streamed = agents.Runner.run_streamed(agent(), "What is 17 + 25?")
            kinds = [event.type async for event in streamed.stream_events()]
            self.assertIn("raw_response_event", kinds)
            self.assertIn("42", streamed.final_output)

        self.run_both(run)
