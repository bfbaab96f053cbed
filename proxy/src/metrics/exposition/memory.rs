//! The families of the process's memory.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use super::{Number, number};
use crate::memory::Memory;

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, memory: &Memory) -> fmt::Result {
    let gauges = [
        ("memory_limit", "Memory that the process may have", memory.limit()),
        ("memory_used", "Memory that the process uses, besides copies of files", memory.used()),
        ("memory_held", "Memory held for clients besides what every connection takes", memory.held()),
    ];
    for (name, help, value) in gauges {
        let gauge = encoder.encode_descriptor(name, help, Some(&Unit::Bytes), MetricType::Gauge)?;
        number(gauge, Number::Gauge(value))?;
    }
    Ok(())
}
