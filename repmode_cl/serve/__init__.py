"""A local web page on which images are predicted without a shell: `repmode-cl serve`.

One process serves the page and predicts. Uploads are received while a prediction runs; predictions wait for the device
in one queue. Prediction itself is `repmode_cl.inference.predict_file`.
"""
