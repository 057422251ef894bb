"""Parameters and results of the former API as records of the Message API, and back."""

import json
from collections.abc import Mapping
from typing import Any, cast

from flwr.app import Array, ArrayRecord, Error, MetricRecord, RecordDict
from flwr.common import (
    Code,
    EvaluateRes,
    FitRes,
    Parameters,
    Scalar,
    parameters_to_ndarrays,
)

from flwr_ctma.compat import ErrorCode

__all__ = ["claims_of", "content_of", "parameters_of", "record_of", "scalars"]


def record_of(parameters: Parameters) -> ArrayRecord:
    """Return the server's parameters as a record; arrays are named by position."""
    arrays = parameters_to_ndarrays(parameters)
    return ArrayRecord({str(i): Array(array) for i, array in enumerate(arrays)})


def parameters_of(arrays: ArrayRecord) -> Parameters:
    """Return arrays as the former API does: without names, shapes and dtypes."""
    return Parameters([array.data for array in arrays.values()], "numpy.ndarray")


def content_of(result: FitRes | EvaluateRes) -> RecordDict | Error:
    """Return a client's result as the content of a reply, its arrays as they are."""
    if result.status.code != Code.OK:
        code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        return Error(code, result.status.message)
    claims: dict[str, Any] = {
        f"metrics.{key}": value
        for key, value in result.metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    if isinstance(result, EvaluateRes):
        claims["loss"] = result.loss
    claims["num-examples"] = result.num_examples
    content = RecordDict({"metrics": MetricRecord(claims)})
    if isinstance(result, FitRes):
        tensors, stype = result.parameters.tensors, result.parameters.tensor_type
        content["arrays"] = ArrayRecord(
            {
                str(i): Array(dtype="", shape=(), stype=stype, data=tensor)
                for i, tensor in enumerate(tensors)
            }
        )
    return content


def claims_of(record: MetricRecord) -> tuple[float, int, dict[str, Scalar]]:
    """Return loss, number of examples and metrics from a record of `content_of`."""
    metrics = {
        key.removeprefix("metrics."): cast(Scalar, value)
        for key, value in record.items()
        if key.startswith("metrics.")
    }
    loss = float(cast(float, record.get("loss", float("nan"))))
    return loss, max(round(cast(float, record["num-examples"])), 1), metrics


def scalars(report: Mapping[str, Any] | None) -> dict[str, Scalar]:
    """Return lists of nodes as text, because metrics of this API are scalars."""
    return {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in (report or {}).items()
    }
