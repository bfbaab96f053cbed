//! Tasks without which the operator does not do what it is there for. When one ends, whether it returns or panics, the process ends
//! with an error that names it, and Kubernetes starts it anew: half an operator would look like a whole one.

use std::future::Future;

use tokio::task::{AbortHandle, JoinSet};

/// The essential tasks of a process. They end when this is dropped.
#[derive(Default)]
pub struct Essential {
    tasks: JoinSet<()>,
    names: Vec<(&'static str, AbortHandle)>,
}

impl Essential {
    /// Runs a task of this name.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.names.push((name, self.tasks.spawn(task)));
    }

    /// The names of all tasks.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.names.iter().map(|(name, _)| *name)
    }

    /// Ends one task as a panic would: for tests.
    pub fn end(&self, name: &str) {
        self.names.iter().filter(|(of, _)| *of == name).for_each(|(_, task)| task.abort());
    }

    /// Waits until one has ended, and returns its name.
    pub async fn ended(&mut self) -> &'static str {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            let id = ended.map_or_else(|error| error.id(), |(id, ())| id);
            if let Some((name, _)) = self.names.iter().find(|(_, task)| task.id() == id) {
                return name;
            }
        }
        std::future::pending().await // there are none
    }

    /// Ends all.
    pub async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_is_named() {
        let mut essential = Essential::default();
        essential.spawn("waits", std::future::pending());
        essential.spawn("returns", async {});
        assert_eq!(essential.ended().await, "returns");
        essential.spawn("panics", async { panic!("as it happens") });
        assert_eq!(essential.ended().await, "panics");
        essential.end("waits");
        assert_eq!(essential.ended().await, "waits");
        assert_eq!(essential.names().count(), 3);
    }
}
