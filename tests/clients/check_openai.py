#!/usr/bin/env python3
"""The server through the openai package: check_openai.py PROGRAM MODEL, a model that follows instructions."""

import sys
import typing
import unittest

import openai
import pydantic
from served import Served

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


class OpenAi(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Served().__enter__()
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
        self.assertEqual(reply.usage.prompt_tokens_details.cached_tokens, 0)
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


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
