//! The families of the essential tasks, and of panics.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::{Number, number};
use crate::essential::{self, Task, Tasks};

pub(super) fn encode(encoder: &mut DescriptorEncoder<'_>, tasks: &Tasks) -> fmt::Result {
    let help = "Essential tasks that ended, and were started again";
    let mut family = encoder.encode_descriptor("task_restarts", help, None, MetricType::Counter)?;
    for task in Task::ALL {
        let count = Number::Count(tasks.restarts(task));
        number(family.encode_family(&[("task", task.name())])?, count)?;
    }
    let help = "Panics, each a fault of the proxy; where requests were answered, they are rejections by the reason internal";
    let panics = encoder.encode_descriptor("panics", help, None, MetricType::Counter)?;
    number(panics, Number::Count(essential::panics()))?;
    let help = "What /livez says: 1 is alive";
    let alive = encoder.encode_descriptor("alive", help, None, MetricType::Gauge)?;
    number(alive, Number::Gauge(u64::from(tasks.alive().is_ok())))
}
