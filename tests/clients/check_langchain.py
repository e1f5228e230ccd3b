#!/usr/bin/env python3
"""The server through LangChain: check_langchain.py PROGRAM MODEL, a model that follows instructions."""

import sys
import unittest

import pydantic
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from served import Served


class LangChain(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Served().__enter__()
        cls.options = {"base_url": cls.server.address + "/v1", "api_key": "none", "max_retries": 0,
                       "model": "SmolLM2-135M-Instruct.Q4_1"}

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def test_chat_with_a_history(self):
        chat = ChatOpenAI(**self.options, temperature=0, max_tokens=40)
        reply = chat.invoke([SystemMessage("Answer in one sentence."), HumanMessage("What is 2 + 2?")])
        self.assertTrue(reply.content)
        self.assertGreater(reply.usage_metadata["input_tokens"], 10)
        again = chat.invoke([HumanMessage("What is 2 + 2?"), AIMessage(reply.content), HumanMessage("Thanks")])
        self.assertTrue(again.content)

    def test_a_stream_says_the_same(self):
        chat = ChatOpenAI(**self.options, temperature=1, seed=5, max_tokens=24)
        self.assertEqual("".join(chunk.content for chunk in chat.stream("Hello")), chat.invoke("Hello").content)

    def test_structured_output(self):
        class City(pydantic.BaseModel):
            name: str = pydantic.Field(max_length=30)
            large: bool

        chat = ChatOpenAI(**self.options, seed=1, max_tokens=100).with_structured_output(City, method="json_schema")
        self.assertIsInstance(chat.invoke("Name a city."), City)

    def test_tools(self):
        def add(first: int, second: int) -> int:
            """Adds two numbers."""
            return first + second

        chat = ChatOpenAI(**self.options, seed=1, max_tokens=100).bind_tools([add], tool_choice="required")
        question = HumanMessage("What is 2 + 3?")
        reply = chat.invoke([question])
        call = reply.tool_calls[0]
        self.assertEqual((call["name"], set(call["args"])), ("add", {"first", "second"}))
        result = ToolMessage("5", tool_call_id=call["id"])
        again = ChatOpenAI(**self.options, max_tokens=8).invoke([question, reply, result])
        self.assertTrue(again.content)

    def test_embeddings(self):
        # Else it would count tokens by a vocabulary of OpenAI's, and send those.
        embeddings = OpenAIEmbeddings(**self.options, check_embedding_ctx_length=False)
        one = embeddings.embed_query("A cat sleeps.")
        several = embeddings.embed_documents(["A cat sleeps."] + [f"Line {i}." for i in range(200)])
        self.assertEqual((len(one), len(several)), (576, 201))
        self.assertAlmostEqual(sum(a * b for a, b in zip(one, several[0])), 1, places=5)

    def test_completion(self):
        self.assertIn("Paris", OpenAI(**self.options, temperature=0, max_tokens=4).invoke("The capital of France is"))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[3:])
