#!/usr/bin/env python3
"""The server through the openai package: check_openai.py PROGRAM MODEL, a model that follows instructions."""

import json
import sys
import time
import typing
import unittest

import openai
import pydantic
from served import Served

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


class OpenAi(unittest.TestCase):
    arguments = ()  # of the server

    @classmethod
    def setUpClass(cls):
        cls.server = Served(*cls.arguments).__enter__()
        cls.client = openai.OpenAI(base_url=cls.server.address + "/v1", api_key="none", max_retries=0)
        cls.model = cls.client.models.list().data[0].id

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__()

    def test_chat(self):
        reply = self.client.chat.completions.create(model=self.model, messages=QUESTION, temperature=0, max_tokens=60)
        self.assertIn("4", reply.choices[0].message.content)
        self.assertEqual(reply.choices[0].finish_reason, "stop")
        self.assertEqual(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens)
        self.assertLess(reply.usage.prompt_tokens_details.cached_tokens, reply.usage.prompt_tokens)
        # An answer goes back as it came.
        messages = [*QUESTION, reply.choices[0].message, {"role": "user", "content": "Thanks"}]
        again = self.client.chat.completions.create(model=self.model, messages=messages, max_completion_tokens=3)
        self.assertEqual(len(again.choices), 1)

    def test_streamed_chat_says_the_same(self):
        options = {"model": self.model, "messages": QUESTION, "seed": 7, "max_tokens": 24}
        whole = self.client.chat.completions.create(**options)
        text, usage, finish = "", None, None
        for chunk in self.client.chat.completions.create(**options, stream=True,
                                                         stream_options={"include_usage": True}):
            if chunk.usage:
                usage = chunk.usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(finish, whole.choices[0].finish_reason)
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)

    def test_a_stream_that_is_closed_early_is_cancelled(self):
        with self.client.chat.completions.create(model=self.model, messages=QUESTION, stream=True, max_tokens=4000,
                                                 extra_body={"ignore_eos": True}) as stream:
            for _ in zip(range(3), stream):
                pass
        reply = self.client.chat.completions.create(model=self.model, messages=QUESTION, max_tokens=1)
        self.assertLess(reply.usage.model_extra["tinyserve"]["queue_seconds"], 2)

    def test_logprobs(self):
        reply = self.client.chat.completions.create(model=self.model, messages=QUESTION, temperature=0, max_tokens=3,
                                                    logprobs=True, top_logprobs=2)
        for token in reply.choices[0].logprobs.content:
            self.assertEqual(token.token, token.top_logprobs[0].token)
            self.assertEqual(bytes(token.bytes).decode(), token.token)
        reply = self.client.completions.create(model=self.model, prompt="The capital of France is", max_tokens=1,
                                               temperature=0, echo=True, logprobs=1)
        logprobs = reply.choices[0].logprobs
        self.assertIn(" Paris", logprobs.tokens)
        self.assertEqual(len(logprobs.tokens), len(logprobs.token_logprobs))
        self.assertIsNone(logprobs.token_logprobs[0])

    def test_answers_are_parsed_by_their_schema(self):
        class Sum(pydantic.BaseModel):
            first: int
            second: int
            carried: bool
            kind: typing.Literal["small", "large"]

        question = [{"role": "user", "content": "Which numbers are added in 2 + 3?"}]
        reply = self.client.chat.completions.parse(model=self.model, messages=question, response_format=Sum,
                                                   max_tokens=120, seed=1)
        self.assertIsInstance(reply.choices[0].message.parsed, Sum)
        with self.client.chat.completions.stream(model=self.model, messages=question, response_format=Sum,
                                                 max_tokens=120, seed=1) as stream:
            self.assertEqual(stream.get_final_completion().choices[0].message.parsed, reply.choices[0].message.parsed)
        reply = self.client.chat.completions.create(model=self.model, messages=question, max_tokens=20,
                                                    extra_body={"structured_outputs": {"choice": ["two", "three"]}})
        self.assertIn(reply.choices[0].message.content, ("two", "three"))

    def test_tools_are_called_and_their_results_go_back(self):
        numbers = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                   "required": ["a", "b"], "additionalProperties": False}
        options = {"model": self.model, "messages": QUESTION, "tool_choice": "required", "seed": 1, "max_tokens": 80,
                   "tools": [{"type": "function", "function": {"name": "add", "description": "Adds two numbers.",
                                                               "parameters": numbers}}]}
        message = self.client.chat.completions.create(**options).choices[0].message
        call = message.tool_calls[0]
        self.assertEqual(call.function.name, "add")
        self.assertEqual(set(json.loads(call.function.arguments)), {"a", "b"})
        text = ""
        for chunk in self.client.chat.completions.create(**options, stream=True):
            for part in chunk.choices[0].delta.tool_calls or []:
                text += part.function.arguments or ""
        self.assertTrue(text.startswith(call.function.arguments))
        options["messages"] = [*QUESTION, message, {"role": "tool", "tool_call_id": call.id, "content": "4"}]
        reply = self.client.chat.completions.create(**{**options, "tool_choice": "none"})
        self.assertTrue(reply.choices[0].message.content)

    def test_responses(self):
        question = {"model": self.model, "temperature": 0, "max_output_tokens": 60}
        first = self.client.responses.create(**question, input="What is 2 + 2?", metadata={"a": "b"})
        self.assertIn("4", first.output_text)
        self.assertEqual((first.status, first.metadata), ("completed", {"a": "b"}))
        second = self.client.responses.create(**question, input="And 3 + 3?", previous_response_id=first.id)
        self.assertGreater(second.usage.input_tokens, first.usage.input_tokens + first.usage.output_tokens)
        if not self.arguments:  # so short a conversation has no coded pages yet that may be used again
            self.assertGreater(second.usage.input_tokens_details.cached_tokens, 0)
        self.assertEqual(self.client.responses.retrieve(first.id).output_text, first.output_text)
        self.assertEqual(self.client.responses.input_items.list(first.id).data[0].content[0].text, "What is 2 + 2?")
        # The output goes back as it came, too.
        again = self.client.responses.create(**question, input=[
            {"role": "user", "content": "What is 2 + 2?"}, *first.output, {"role": "user", "content": "And 3 + 3?"}])
        self.assertEqual(again.usage.input_tokens, second.usage.input_tokens)
        self.client.responses.delete(first.id)
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.retrieve(first.id)

    def test_responses_in_a_stream(self):
        options = {"model": self.model, "input": "What is 2 + 2?", "temperature": 0, "max_output_tokens": 60}
        with self.client.responses.stream(**options) as stream:
            text = "".join(e.delta for e in stream if e.type == "response.output_text.delta")
            self.assertEqual(stream.get_final_response().output_text, text)
        self.assertEqual(self.client.responses.create(**options).output_text, text)
        stream = self.client.responses.create(**{**options, "max_output_tokens": 2000}, stream=True,
                                              extra_body={"ignore_eos": True})
        for event in stream:
            if event.type == "response.created":
                self.assertEqual(self.client.responses.cancel(event.response.id).status, "cancelled")
        self.assertEqual((event.type, event.response.status), ("response.incomplete", "cancelled"))

    def test_responses_in_the_background(self):
        def ended(response):
            while response.status in ("queued", "in_progress"):
                time.sleep(0.1)
                response = self.client.responses.retrieve(response.id)
            return response

        options = {"model": self.model, "input": "What is 2 + 2?", "temperature": 0, "max_output_tokens": 8}
        self.assertEqual(ended(self.client.responses.create(**options, background=True)).output_text,
                         self.client.responses.create(**options).output_text)
        endless = self.client.responses.create(**{**options, "max_output_tokens": 2000}, background=True,
                                               extra_body={"ignore_eos": True})
        self.client.responses.cancel(endless.id)
        self.assertEqual(ended(endless).status, "cancelled")

    def test_responses_with_functions_and_a_schema(self):
        class Sum(pydantic.BaseModel):
            first: int
            second: int

        tool = openai.pydantic_function_tool(Sum)["function"]
        reply = self.client.responses.create(model=self.model, input="Add 2 and 3.", tool_choice="required",
                                             temperature=0, max_output_tokens=80,
                                             tools=[{"type": "function", **tool}])
        call = reply.output[0]
        self.assertEqual((call.type, call.name), ("function_call", "Sum"))
        Sum.model_validate_json(call.arguments)
        self.client.responses.create(model=self.model, previous_response_id=reply.id, max_output_tokens=8, input=[
            {"type": "function_call_output", "call_id": call.call_id, "output": "5"}])
        parsed = self.client.responses.parse(model=self.model, input="Which numbers are added in 2 + 3?",
                                             text_format=Sum, max_output_tokens=80)
        self.assertIsInstance(parsed.output_parsed, Sum)

    def test_embeddings(self):
        texts = ["A cat sleeps on the sofa.", "The kitten is asleep on a couch.", "Quarterly tax revenue fell by 3 %."]
        for options in ({}, {"encoding_format": "float"}, {"extra_body": {"tinyserve": {"pooling": "last"}}}):
            reply = self.client.embeddings.create(model=self.model, input=texts, **options)
            cat, kitten, tax = (data.embedding for data in reply.data)
            self.assertEqual(len(cat), 576)

            def cosine(a, b):
                return sum(x * y for x, y in zip(a, b))
            self.assertAlmostEqual(cosine(cat, cat), 1, places=5)
            self.assertGreater(cosine(cat, kitten), cosine(cat, tax))
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.embeddings.create(model=self.model, input=texts, dimensions=64)
        self.assertEqual(caught.exception.param, "dimensions")

    def test_batches_and_n(self):
        reply = self.client.completions.create(model=self.model, prompt=["One, two,", "A, B,"], n=2, max_tokens=4)
        self.assertEqual([c.index for c in reply.choices], [0, 1, 2, 3])

    def test_a_selector_for_one_request(self):
        own = {"tinyserve": {"selector": "streaming"}}
        reply = self.client.chat.completions.create(model=self.model, messages=QUESTION, max_tokens=2, extra_body=own)
        self.assertEqual(len(reply.choices), 1)

    def test_errors_are_the_packages_own(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=self.model, messages=QUESTION, temperature=9)
        self.assertEqual(caught.exception.param, "temperature")
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt="long " * 20000)
        self.assertEqual(caught.exception.code, "context_length_exceeded")
        with self.assertRaises(openai.NotFoundError):
            self.client.chat.completions.create(model="gpt-4", messages=QUESTION)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.chat.completions.create(model=self.model, messages=QUESTION, extra_body={"nonsense": 1})
        self.assertEqual(caught.exception.param, "nonsense")


class OpenAiUnderSelection(OpenAi):
    """All of it from coded pages, of which generated tokens read a part."""
    arguments = ("--selector", "default")

    def test_a_conversation_goes_on_from_coded_pages(self):
        options = {"model": self.model, "temperature": 0, "max_output_tokens": 8}
        first = self.client.responses.create(**options, input="The whale swam far. " * 150)
        second = self.client.responses.create(**options, input="Go on.", previous_response_id=first.id)
        self.assertGreater(second.usage.input_tokens_details.cached_tokens, first.usage.input_tokens // 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
