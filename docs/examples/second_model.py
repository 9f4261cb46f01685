"""DAGs `release_churn` and `watch_churn`: the releases of a second model, begun at the end of each training run."""

from __future__ import annotations

from airflow_onnx.dag import release_dag, watch_dag

release = release_dag("release_churn", model_name="churn-onnx", bucket="acme-models", prefix="churn", speedup_min=1.2)
watch = watch_dag("watch_churn", release_dag_id="release_churn", experiments=["churn-*"])
