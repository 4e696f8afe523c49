"""`WholeDocumentNodeParser`: documents stay whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid5

from llama_index.core.bridge.pydantic import Field
from llama_index.core.node_parser import NodeParser
from llama_index.core.node_parser.node_utils import build_nodes_from_splits
from llama_index.core.schema import BaseNode, MetadataMode
from llama_index.core.utils import get_tqdm_iterable

_NAMESPACE = UUID("4a0c4f0e-0d2b-5b7e-9a53-1f9c6b3a7d21")


def whole_document_id(i: int, document: BaseNode) -> str:
    """A UUID made from the document's id: the same whenever it is parsed, and one that Qdrant takes."""
    return str(uuid5(_NAMESPACE, f"{document.node_id}#{i}" if i else document.node_id))


class WholeDocumentNodeParser(NodeParser):
    """One node for each document, with all of its text.

    LlamaIndex cuts documents to pieces of 1,024 tokens; an empty list of transformations does not stop it
    (`VectorStoreIndex.from_documents(documents, transformations=[])` cuts them too), this does. A node's id is made
    from the document's, so that a document parsed again replaces itself in a vector store.

    Example:
        >>> from llama_index.core import VectorStoreIndex
        >>> from llama_index.embeddings.m2rag import M2Embedding, WholeDocumentNodeParser
        >>> index = VectorStoreIndex.from_documents(
        ...     documents, transformations=[WholeDocumentNodeParser()], embed_model=M2Embedding()
        ... )
    """

    embed_metadata: bool = Field(
        default=False,
        description="Put the document's metadata in front of its text when it is embedded, as LlamaIndex otherwise "
        "does. Without it the vector is that of the text alone.",
    )
    id_func: Callable[..., str] = Field(default=whole_document_id, exclude=True, description="Makes the ids of nodes.")

    @classmethod
    def class_name(cls) -> str:
        """As it is written into a dump."""
        return "WholeDocumentNodeParser"

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        parsed: list[BaseNode] = []
        for document in get_tqdm_iterable(nodes, show_progress, "Parsing nodes"):
            text = document.get_content(metadata_mode=MetadataMode.NONE)
            for node in build_nodes_from_splits([text], document, id_func=self.id_func):
                if not self.embed_metadata:
                    hidden = [*node.excluded_embed_metadata_keys, *document.metadata]
                    node.excluded_embed_metadata_keys = list(dict.fromkeys(hidden))
                parsed.append(node)
        return parsed
