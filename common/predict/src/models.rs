//! Small real models for tests: ONNX written here, signed with test keys.

use headroom_fingerprint::WINDOW;
use headroom_telemetry::{Feature, Resource, schema::SchemaHash};
use prost::Message;
use ring::signature::{Ed25519KeyPair, KeyPair};
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, tensor_proto, tensor_shape_proto, type_proto,
};

use crate::{
    bundle::{Evaluation, GoldenVector, Manifest},
    forecast::{HORIZON_STEPS, HORIZONS, LEVELS, QUANTILES},
};

pub(crate) const OUTPUTS: usize = Resource::COUNT * HORIZONS * LEVELS;

pub(crate) fn key_pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub(crate) fn public_key(seed: u8) -> Vec<u8> {
    key_pair(seed).public_key().as_ref().to_vec()
}

pub(crate) fn manifest(version: u64) -> Manifest {
    Manifest {
        version,
        schema: SchemaHash::current(),
        window_steps: WINDOW as u32,
        step_s: 1.0,
        horizon_steps: HORIZON_STEPS.to_vec(),
        quantiles: QUANTILES.to_vec(),
        trained_from_s: 0.0,
        trained_to_s: 0.0,
        created_s: 0.0,
        architecture: "linear in the last row".to_owned(),
        evaluation: Evaluation::default(),
        onnx_sha256: [0; 32],
    }
}

/// A linear model: the last row times a matrix, plus a bias.
pub(crate) struct Linear {
    /// `[WINDOW * Feature::COUNT][n_outputs]`.
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) n_outputs: usize,
    pub(crate) shape: Vec<i64>,
}

impl Linear {
    /// Repeats the last CPU value at every level and horizon, spread by `band` around it.
    pub(crate) fn persistence(band: f32) -> Self {
        let n_inputs = WINDOW * Feature::COUNT;
        let mut weights = vec![0.0; n_inputs * OUTPUTS];
        let mut bias = vec![0.0; OUTPUTS];
        for output in 0..OUTPUTS {
            let feature = match output / (HORIZONS * LEVELS) {
                0 => Feature::CpuCores,
                1 => Feature::MemoryBytes,
                2 => Feature::DiskReadBps,
                _ => Feature::NetRxBps,
            };
            let input = (WINDOW - 1) * Feature::COUNT + feature.index();
            weights[input * OUTPUTS + output] = 1.0;
            bias[output] = band * (output % LEVELS) as f32 - band;
        }
        Self {
            weights,
            bias,
            n_outputs: OUTPUTS,
            shape: vec![WINDOW as i64, Feature::COUNT as i64],
        }
    }

    pub(crate) fn answer(&self, input: &[f32]) -> Vec<f32> {
        let mut output = self.bias.clone();
        for (x, row) in input.iter().zip(self.weights.chunks(self.n_outputs)) {
            output.iter_mut().zip(row).for_each(|(y, w)| *y += x * w);
        }
        output
    }

    pub(crate) fn golden(&self) -> Vec<GoldenVector> {
        let input: Vec<f32> = (0..WINDOW * Feature::COUNT).map(|i| (i % 7) as f32 / 7.0).collect();
        vec![GoldenVector { output: self.answer(&input), input }]
    }

    /// ONNX with a symbolic batch and value_info that pins it, as exporters of other tools write.
    pub(crate) fn onnx(&self) -> Vec<u8> {
        let n_inputs = self.weights.len() / self.n_outputs;
        let graph = GraphProto {
            name: "linear".to_owned(),
            node: vec![
                node("Reshape", &["x", "shape"], "flat"),
                node("Gemm", &["flat", "weights", "bias"], "y"),
            ],
            initializer: vec![
                integers("shape", &[-1, n_inputs as i64]),
                floats("weights", &[n_inputs as i64, self.n_outputs as i64], &self.weights),
                floats("bias", &[self.n_outputs as i64], &self.bias),
            ],
            input: vec![value("x", &self.shape)],
            output: vec![value("y", &[self.n_outputs as i64])],
            value_info: vec![value("flat", &[n_inputs as i64])],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            graph: Some(graph),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: format!("{op}_{output}"),
        op_type: op.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: tensor_proto::DataType::Float as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: tensor_proto::DataType::Int64 as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..TensorProto::default()
    }
}

fn value(name: &str, dims_after_batch: &[i64]) -> ValueInfoProto {
    use tensor_shape_proto::{
        Dimension,
        dimension::Value::{DimParam, DimValue},
    };
    let batch = Dimension { value: Some(DimParam("N".to_owned())), ..Dimension::default() };
    let rest = dims_after_batch
        .iter()
        .map(|dim| Dimension { value: Some(DimValue(*dim)), ..Dimension::default() });
    let tensor = type_proto::Tensor {
        elem_type: tensor_proto::DataType::Float as i32,
        shape: Some(TensorShapeProto { dim: std::iter::once(batch).chain(rest).collect() }),
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
