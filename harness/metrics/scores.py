"""Accuracy, and what a model still can of what it could before."""

from __future__ import annotations

from harness.metrics.definition import MetricDef

_MILLER = "Miller 2024, arXiv:2411.00640"

_FORMATS = {
    "finetune": "with the task's own prompt",
    "cloze": "for the text of every option after the question",
    "letter": "for the letter of a listed option",
}

QUANTITIES: tuple[MetricDef, ...] = (
    # accuracy of the adapted model, on the task's test split
    MetricDef("accuracy", "accuracy", "fraction", "higher", "Share of test items answered right.", "accuracy"),
    MetricDef(
        "accuracy_norm",
        "accuracy, per byte",
        "fraction",
        "higher",
        "Share of multiple-choice items whose right option has the highest log-likelihood per byte of its text.",
        "accuracy",
        source="EleutherAI lm-evaluation-harness, acc_norm",
    ),
    *(
        MetricDef(
            f"{name}_accuracy{norm}",
            f"accuracy as {name}{', per byte' if norm else ''}",
            "fraction",
            "higher",
            f"Test accuracy{', by log-likelihood per byte,' if norm else ''} of a model that was not trained, asked "
            f"{how}.",
            "accuracy",
        )
        for name, how in _FORMATS.items()
        for norm in ("", "_norm")
    ),
    MetricDef(
        "best_format_accuracy",
        "base's best",
        "fraction",
        "higher",
        "Highest test accuracy of a model that was not trained, over the formats of its task, per option and per byte.",
        "accuracy",
    ),
    MetricDef(
        "macro_f1",
        "macro F1",
        "fraction",
        "higher",
        "Unweighted mean over the classes of 2 TP / (2 TP + FP + FN) on the test split.",
        "accuracy",
    ),
    MetricDef(
        "matthews",
        "Matthews",
        "1",
        "higher",
        "Correlation of predicted and right classes on the test split, any number of classes.",
        "accuracy",
        source="Gorodkin 2004, doi:10.1016/j.compbiolchem.2004.09.006",
    ),
    MetricDef(
        "reward_accuracy",
        "reward accuracy",
        "fraction",
        "higher",
        "Share of test pairs whose chosen answer gained more log-probability over the base than the rejected one.",
        "accuracy",
        source="Rafailov et al. 2023, arXiv:2305.18290",
    ),
    MetricDef(
        "reward_margin",
        "reward margin",
        "nat",
        "higher",
        "Mean gain in log-probability over the base of the chosen answer less that of the rejected one, beta left out; "
        "of answers judged one by one: the gain, its sign turned for bad ones.",
        "accuracy",
        source="Rafailov et al. 2023, arXiv:2305.18290",
    ),
    MetricDef(
        "reference_kl",
        "KL from base",
        "nat",
        "lower",
        "Mean over the tokens of the chosen test answers of KL(model || base), where the base's 64 most likely tokens "
        "are separate and all others count as one: a lower bound.",
        "accuracy",
    ),
    MetricDef(
        "length_bias",
        "length bias",
        "fraction",
        "neither",
        "Share of test pairs of unequal length in which the longer answer is preferred, less the share in which it is "
        "the chosen one.",
        "accuracy",
    ),
    MetricDef(
        "answer_nll",
        "answer NLL",
        "nat",
        "lower",
        "Mean negative log-likelihood of the right answer, summed over its tokens, per test item.",
        "accuracy",
    ),
    MetricDef(
        "bleu",
        "BLEU",
        "points",
        "higher",
        "Corpus BLEU of the completions against one reference each, sacrebleu's defaults (13a, mixed case, exponential "
        "smoothing), 0 to 100.",
        "accuracy",
        source="Post 2018, arXiv:1804.08771",
    ),
    MetricDef(
        "chrf",
        "chrF",
        "points",
        "higher",
        "Corpus chrF2 of the completions against one reference each, sacrebleu's defaults, 0 to 100.",
        "accuracy",
        source="Popović 2015, doi:10.18653/v1/W15-3049",
    ),
    *(
        MetricDef(
            name,
            shown,
            "fraction",
            "higher",
            f"Mean over the items of the F1 of {what} between completion and reference, Porter stems.",
            "accuracy",
            source="Lin 2004, ROUGE; package rouge-score",
        )
        for name, shown, what in (
            ("rouge_1", "ROUGE-1", "words"),
            ("rouge_2", "ROUGE-2", "pairs of words"),
            ("rouge_l", "ROUGE-L", "the longest common subsequence"),
        )
    ),
    MetricDef(
        "exact_match",
        "exact match",
        "fraction",
        "higher",
        "Share of completions with the words of the reference; case, punctuation and articles do not count.",
        "accuracy",
        source="Rajpurkar et al. 2016, arXiv:1606.05250",
    ),
    MetricDef(
        "token_f1",
        "token F1",
        "fraction",
        "higher",
        "Mean over the items of the F1 of the words that completion and reference share; words as for exact match.",
        "accuracy",
        source="Rajpurkar et al. 2016, arXiv:1606.05250",
    ),
    *(
        MetricDef(
            f"pass_at_{k}",
            f"pass@{k}",
            "fraction",
            "higher",
            f"Chance that one of {k} generated programs passes the item's tests: unbiased estimate, mean over items.",
            "accuracy",
            source="Chen et al. 2021, arXiv:2107.03374, equation 1",
        )
        for k in (1, 10, 100)
    ),
    MetricDef(
        "bits_per_byte",
        "bits per byte",
        "bit/byte",
        "lower",
        "Negative log2-likelihood of the test texts over their UTF-8 bytes; comparable between tokenizers.",
        "accuracy",
    ),
    MetricDef(
        "perplexity",
        "perplexity",
        "1",
        "lower",
        "exp of the mean negative log-likelihood per token of the test texts; comparable only where the tokenizer is "
        "the same.",
        "accuracy",
    ),
    MetricDef(
        "merged_accuracy",
        "merged accuracy",
        "fraction",
        "higher",
        "Accuracy of the model after its adapter was merged into the base, scored again.",
        "accuracy",
    ),
    MetricDef(
        "before_quantization_accuracy",
        "accuracy before quantization",
        "fraction",
        "higher",
        "Accuracy of the trained model in full precision, before it was merged and quantized; the row's own accuracy "
        "is that of the quantized model.",
        "accuracy",
    ),
    MetricDef(
        "merge_error_max",
        "merge error, max",
        "1",
        "lower",
        "Largest absolute logit difference between the unmerged and the merged model on the probe batch.",
        "check",
    ),
    MetricDef(
        "merge_error_mean",
        "merge error, mean",
        "1",
        "lower",
        "Mean absolute logit difference between the unmerged and the merged model on the probe batch.",
        "check",
    ),
    MetricDef(
        "validation_nll",
        "validation NLL",
        "nat",
        "lower",
        "Mean negative log-likelihood of the right answer on the validation split, after training.",
        "accuracy",
    ),
    MetricDef(
        "train_loss", "train loss", "nat", "lower", "Mean training loss over the last tenth of the steps.", "accuracy"
    ),
    MetricDef(
        "calibration_error",
        "calibration error",
        "fraction",
        "lower",
        "Expected calibration error of the test items over 15 bins of equal width: the mean difference between the "
        "share of right answers and the probability the model gave them. Follows from the stored samples.",
        "accuracy",
        source="Guo et al. 2017, arXiv:1706.04599, equation 3",
    ),
    MetricDef(
        "option_order_accuracy",
        "accuracy over orders",
        "fraction",
        "higher",
        "Share of right answers, mean over the prompt's order of the options and the additional ones drawn per item, "
        "then over the test items.",
        "accuracy",
    ),
    MetricDef(
        "option_order_changes",
        "answers that change with the order",
        "fraction",
        "lower",
        "Share of test items to which not every order of the listed options gets the same option as its answer.",
        "accuracy",
    ),
    MetricDef(
        "prompt_accuracy",
        "accuracy over prompts",
        "fraction",
        "higher",
        "Mean of the test accuracies under the task's prompt and under each of its pinned alternatives.",
        "accuracy",
    ),
    MetricDef(
        "prompt_spread",
        "spread over prompts",
        "fraction",
        "lower",
        "Highest less lowest test accuracy under the task's prompt and its pinned alternatives.",
        "accuracy",
    ),
    MetricDef(
        "in_context_accuracy",
        "accuracy with examples",
        "fraction",
        "higher",
        "Test accuracy of the adapted model with worked examples of the training split before each prompt.",
        "accuracy",
    ),
    MetricDef(
        "in_context_gain",
        "gain by examples",
        "fraction",
        "higher",
        "Test accuracy with worked examples before each prompt less that without: below 0 where a model that was tuned "
        "without examples cannot use them.",
        "accuracy",
    ),
    MetricDef(
        "generation_calibration_error",
        "calibration error of completions",
        "fraction",
        "lower",
        "Expected calibration error of generated answers over 15 bins of equal width, the confidence of an answer "
        "being the geometric mean of its tokens' probabilities; an empty answer has none and is left out.",
        "accuracy",
        source="Guo et al. 2017, arXiv:1706.04599, equation 3; Malinin & Gales 2021, arXiv:2002.07650",
    ),
    MetricDef(
        "generation_confidence_auroc",
        "confidence AUROC",
        "fraction",
        "higher",
        "Chance that a right generated answer has a higher confidence than a wrong one, ties as a half: 0.5 is no "
        "better than a coin; confidence as for the calibration error of completions.",
        "accuracy",
        source="Malinin & Gales 2021, arXiv:2002.07650",
    ),
    MetricDef(
        "cut_items",
        "inputs cut",
        "count",
        "lower",
        "Test items whose input was longer than the model's context and was cut. Follows from the stored samples.",
        "check",
    ),
    MetricDef(
        "shared_rate_accuracy",
        "accuracy at the shared rate",
        "fraction",
        "higher",
        "Test accuracy at the one learning rate that the sweep also gives to every method, in addition to the tuned "
        "one.",
        "accuracy",
    ),
    # said by a judge
    *(
        MetricDef(
            name,
            label,
            "fraction",
            better,  # type: ignore[arg-type]  # one of the three
            definition,
            "judged",
            source="Zheng et al. 2023, arXiv:2306.05685",
        )
        for name, label, better, definition in (
            (
                "judge_win_rate",
                "judge: wins",
                "higher",
                "Share of test items whose generated answer a judge finds better than the reference; a half where its "
                "verdict changes when the two change places.",
            ),
            (
                "judge_consistency",
                "judge: consistency",
                "higher",
                "Share of judged items with the same verdict in both orders of the two answers.",
            ),
            (
                "judge_agreement",
                "judge: agreement",
                "higher",
                "Share of completions where the judge prefers the reference, of those that the task's parser finds "
                "wrong and on which the judge is consistent.",
            ),
            (
                "judge_length_bias",
                "judge: length bias",
                "neither",
                "Share of consistent verdicts on answers of unequal length that prefer the longer one, less a half.",
            ),
        )
    ),
    # retention
    MetricDef(
        "negative_flips",
        "negative flips",
        "fraction",
        "lower",
        "Share of the skill items that the base model answers right and the adapted model wrong; a mean that stays "
        "can hide them. Follows from the stored samples.",
        "retention",
        source="Yan et al. 2021, arXiv:2011.09161, negative flip rate",
    ),
    MetricDef(
        "retained_accuracy",
        "retained",
        "fraction",
        "higher",
        "Mean accuracy on the skills the base model had before, scored after adaptation.",
        "retention",
        source=_MILLER + " for the paired error",
    ),
    MetricDef(
        "base_retained_accuracy",
        "base skills",
        "fraction",
        "higher",
        "Mean accuracy of the base model on those same skills and items, before any adaptation.",
        "retention",
    ),
    MetricDef(
        "held_out_bits_per_byte",
        "held-out text",
        "bit/byte",
        "lower",
        "Bits per UTF-8 byte of texts that the task never saw, under the adapted model; mean over the sweep's held-out "
        "tasks.",
        "retention",
    ),
    MetricDef(
        "base_held_out_bits_per_byte",
        "base held-out text",
        "bit/byte",
        "lower",
        "Bits per UTF-8 byte of those same texts under the base model, before any adaptation.",
        "retention",
    ),
    MetricDef(
        "lm_eval_accuracy",
        "lm-eval",
        "fraction",
        "higher",
        "Mean over the sweep's lm-eval tasks of the share of items answered right, by the adapted model.",
        "retention",
        source="EleutherAI lm-evaluation-harness 0.4.13, in process",
    ),
    MetricDef(
        "base_lm_eval_accuracy",
        "lm-eval, base",
        "fraction",
        "higher",
        "The same of the base model on those same items, before any adaptation.",
        "retention",
        source="EleutherAI lm-evaluation-harness 0.4.13, in process",
    ),
)
