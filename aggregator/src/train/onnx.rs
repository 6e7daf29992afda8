//! The fitted network as an ONNX file.
//!
//! Input `x` is `[N, WINDOW, Feature::COUNT]`, output `y` is `[N, OUTPUTS]`. The GRU is written as
//! the one ONNX node that inference fuses; the lag branch is spelt out in plain operators. Gates
//! are kept apart in [`Weights`] as `[in][out]`; ONNX wants them stacked as update, reset,
//! candidate and `[out][in]`.

use headroom_fingerprint::WINDOW;
use headroom_predict::forecast::{HORIZON_STEPS, QUANTILES};
use headroom_telemetry::{Feature, Resource, schema::SchemaHash};
use prost::Message;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType,
    tensor_proto::DataType, tensor_shape_proto, type_proto,
};

use super::{
    network::USE,
    weights::{Array, Gate, OUTPUTS, Weights},
};

/// Version of the ONNX operator set that is written.
const OPSET: i64 = 17;
/// Version of the ONNX file form that goes with it.
const IR_VERSION: i64 = 8;

/// Writes the network with these weights.
pub fn write(weights: &Weights) -> Vec<u8> {
    let mut graph = Graph::default();
    recurrent_branch(&mut graph, weights);
    lag_branch(&mut graph, weights);
    graph.node("Add", &["by_lag", "by_state"], "y", vec![]);
    let graph = GraphProto {
        name: "forecaster".to_owned(),
        node: graph.nodes,
        initializer: graph.constants,
        input: vec![value("x", &[None, Some(dim(WINDOW)), Some(dim(Feature::COUNT))])],
        output: vec![value("y", &[None, Some(dim(OUTPUTS))])],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: IR_VERSION,
        producer_name: env!("CARGO_PKG_NAME").to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
        graph: Some(graph),
        metadata_props: vec![
            property("headroom.schema", SchemaHash::current().to_string()),
            property("headroom.horizon_steps", format!("{HORIZON_STEPS:?}")),
            property("headroom.quantiles", format!("{QUANTILES:?}")),
        ],
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

/// `by_state`: the GRU's last state mapped to all outputs, bias included.
fn recurrent_branch(graph: &mut Graph, weights: &Weights) {
    let gates = [&weights.update, &weights.reset, &weights.candidate];
    let stacked = |part: fn(&Gate) -> &Array| -> Vec<f32> {
        gates.iter().flat_map(|gate| part(gate).transposed().values).collect()
    };
    let hidden = dim(weights.size.hidden);
    let bias = [stacked(|gate| &gate.input_bias), stacked(|gate| &gate.state_bias)].concat();
    graph.constant("gru_w", &[1, 3 * hidden, dim(Feature::COUNT)], stacked(|gate| &gate.input));
    graph.constant("gru_r", &[1, 3 * hidden, hidden], stacked(|gate| &gate.state));
    graph.constant("gru_b", &[1, 6 * hidden], bias);
    graph.constant("head_w", &[hidden, dim(OUTPUTS)], weights.head.values.clone());
    graph.constant("head_b", &[dim(OUTPUTS)], weights.bias.values.clone());
    graph.integers("axis_0", &[0]);

    graph.node("Transpose", &["x"], "steps", vec![integers("perm", &[1, 0, 2])]);
    // Without `linear_before_reset` the candidate gate is another formula, and inference cannot
    // use its fused operator.
    let attributes = vec![integer("hidden_size", hidden), integer("linear_before_reset", 1)];
    graph.node_with_outputs(
        "GRU",
        &["steps", "gru_w", "gru_r", "gru_b"],
        &["", "last_states"],
        attributes,
    );
    graph.node("Squeeze", &["last_states", "axis_0"], "last_state", vec![]);
    graph.node("Gemm", &["last_state", "head_w", "head_b"], "by_state", vec![]);
}

/// `by_lag`: each resource's own window, relative to its newest value, through the shared layers.
fn lag_branch(graph: &mut Graph, weights: &Weights) {
    let mut selection = vec![0.0; Feature::COUNT * Resource::COUNT];
    for (resource, features) in USE.iter().enumerate() {
        for feature in *features {
            selection[feature.index() * Resource::COUNT + resource] = 1.0;
        }
    }
    graph.constant("selection", &[dim(Feature::COUNT), dim(Resource::COUNT)], selection);
    graph.constant("zero", &[], vec![0.0]);
    graph.constant("one", &[], vec![1.0]);
    graph.integers("newest_step", &[dim(WINDOW) - 1]);
    graph.integers("y_shape", &[-1, dim(OUTPUTS)]);
    graph.matrix("lag_direct", &weights.lag_direct);
    graph.matrix("lag_in", &weights.lag_in);
    let width = dim(weights.size.lag_hidden);
    graph.constant("lag_in_bias", &[width], weights.lag_in_bias.values.clone());
    graph.matrix("lag_out", &weights.lag_out);
    let by_resource = || vec![integers("perm", &[0, 2, 1])];

    // Missing is -1 and measured is never negative: the rectifier drops what is missing, and
    // adding one before clipping tells which is which.
    graph.node("Relu", &["x"], "measured", vec![]);
    graph.node("MatMul", &["measured", "selection"], "use_by_step", vec![]);
    graph.node("Transpose", &["use_by_step"], "use", by_resource());
    graph.node("Add", &["x", "one"], "x_raised", vec![]);
    graph.node("Clip", &["x_raised", "zero", "one"], "x_known", vec![]);
    graph.node("MatMul", &["x_known", "selection"], "known_parts", vec![]);
    graph.node("Clip", &["known_parts", "zero", "one"], "known_by_step", vec![]);
    graph.node("Transpose", &["known_by_step"], "known", by_resource());
    graph.node("Gather", &["use", "newest_step"], "newest", vec![integer("axis", 2)]);
    graph.node("Sub", &["use", "newest"], "use_centred", vec![]);
    graph.node("Mul", &["use_centred", "known"], "lags", vec![]);

    graph.node("MatMul", &["lags", "lag_in"], "lag_sum", vec![]);
    graph.node("Add", &["lag_sum", "lag_in_bias"], "lag_biased", vec![]);
    graph.node("Relu", &["lag_biased"], "lag_rectified", vec![]);
    graph.node("MatMul", &["lag_rectified", "lag_out"], "lag_bent", vec![]);
    graph.node("MatMul", &["lags", "lag_direct"], "lag_straight", vec![]);
    graph.node("Add", &["lag_straight", "lag_bent"], "lag_change", vec![]);
    graph.node("Add", &["lag_change", "newest"], "lag_answers", vec![]);
    graph.node("Reshape", &["lag_answers", "y_shape"], "by_lag", vec![]);
}

/// Nodes and constants as they are added.
#[derive(Default)]
struct Graph {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Graph {
    fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.node_with_outputs(op, inputs, &[output], attributes);
    }

    fn node_with_outputs(
        &mut self,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) {
        let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        self.nodes.push(NodeProto {
            op_type: op.to_owned(),
            name: format!("{}_{}", self.nodes.len(), op),
            input: owned(inputs),
            output: owned(outputs),
            attribute: attributes,
            ..NodeProto::default()
        });
    }

    fn constant(&mut self, name: &str, dims: &[i64], values: Vec<f32>) {
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        self.tensor(name, dims, DataType::Float, bytes);
    }

    fn matrix(&mut self, name: &str, array: &Array) {
        self.constant(name, &[dim(array.rows), dim(array.columns)], array.values.clone());
    }

    fn integers(&mut self, name: &str, values: &[i64]) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensor(name, &[dim(values.len())], DataType::Int64, bytes);
    }

    fn tensor(&mut self, name: &str, dims: &[i64], kind: DataType, bytes: Vec<u8>) {
        self.constants.push(TensorProto {
            name: name.to_owned(),
            dims: dims.to_vec(),
            data_type: kind as i32,
            raw_data: bytes,
            ..TensorProto::default()
        });
    }
}

fn integer(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        i: value,
        r#type: AttributeType::Int as i32,
        ..AttributeProto::default()
    }
}

fn integers(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ints: values.to_vec(),
        r#type: AttributeType::Ints as i32,
        ..AttributeProto::default()
    }
}

/// A named input or output; `None` is the number of windows, free until a runtime fixes it.
fn value(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
    let dims = dims.iter().map(|dim| tensor_shape_proto::Dimension {
        value: Some(match dim {
            Some(size) => tensor_shape_proto::dimension::Value::DimValue(*size),
            None => tensor_shape_proto::dimension::Value::DimParam("N".to_owned()),
        }),
        ..tensor_shape_proto::Dimension::default()
    });
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(TensorShapeProto { dim: dims.collect() }),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn property(key: &str, value: String) -> StringStringEntryProto {
    StringStringEntryProto { key: key.to_owned(), value }
}

#[expect(clippy::cast_possible_wrap, reason = "layer sizes are small")]
fn dim(size: usize) -> i64 {
    size as i64
}
