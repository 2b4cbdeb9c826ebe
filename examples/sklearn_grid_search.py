"""Local learning as a scikit-learn estimator: in a pipeline, its settings searched."""

from sklearn.datasets import load_wine
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import QuantileTransformer

from pipeline import LocalClassifier

X, y = load_wine(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0, stratify=y)

search = GridSearchCV(
    make_pipeline(
        QuantileTransformer(n_quantiles=50),
        LocalClassifier(epochs=8, batch_size=32, lr=8e-3, random_state=0),
    ),
    {
        "localclassifier__hidden": [(64,), (64, 64)],
        "localclassifier__loss": ["predsim", {"name": "pred"}, {"rule": "MonoForward"}],
    },
    cv=3,
)
search.fit(X_train, y_train)
print("best:", search.best_params_)
print(f"accuracy: {search.score(X_test, y_test):.3f}")
