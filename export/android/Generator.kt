// The tests compile this file against the declarations that it uses of Android and LiteRT; it was not run on a phone.

import android.content.res.AssetManager
import android.graphics.Bitmap
import android.graphics.Color
import java.io.FileInputStream
import java.nio.channels.FileChannel
import org.json.JSONObject
import org.tensorflow.lite.Interpreter

private const val DESCRIPTION_VERSION = 3 // of NAME.json; its fields have other meanings in other versions

/**
 * Pictures from seeds, by NAME.tflite and the NAME.json that describes it. Call it off the main thread.
 *
 * @throws IllegalArgumentException the file is of another version, or lacks start, step and finish.
 */
class Generator(assets: AssetManager, name: String = "model", threads: Int = 4) : AutoCloseable {
    private val about = JSONObject(assets.open("$name.json").bufferedReader().use { it.readText() })

    init {
        val version = about.opt("description_version")
        require(version == DESCRIPTION_VERSION) {
            "$name.json must have description_version $DESCRIPTION_VERSION, the one that this app reads. " +
                "Received: ${version ?: "none, as in older exports"}"
        }
        val signatures = about.getJSONObject("signatures")
        require(listOf("start", "step", "finish").all(signatures::has)) { "$name.tflite must have start, step and finish" }
        require(about.optString("target", "cpu") == "cpu") { "$name.tflite must be exported with --target=cpu" }
        require(about.getInt("batch_size") == 1) { "$name.json must have batch_size 1, as this app draws one by one" }
    }

    private val height = about.getJSONArray("image_shape").getInt(0)
    private val width = about.getJSONArray("image_shape").getInt(1)
    private val channels = about.getJSONArray("image_shape").getInt(2)
    private val stateChannels = about.getInt("state_channels") // samplers with a memory carry more than a picture
    private val classes = about.optInt("num_classes", 0) // 0 where it is null
    private val networkCalls = about.getInt("network_calls") // may be more than the sampler's steps
    private val interpreter = assets.openFd("$name.tflite").use { file ->
        FileInputStream(file.fileDescriptor).use { stream ->
            val bytes = stream.channel.map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
            Interpreter(bytes, Interpreter.Options().setNumThreads(threads)) // XNNPACK is on by default
        }
    }

    /** The picture of a seed, and of a label if the model has classes; `show` gets it as it forms, after every call. */
    fun generate(seed: Int, label: Int = seed.mod(maxOf(classes, 1)), show: (call: Int, picture: Bitmap) -> Unit): Bitmap {
        val seeds = mapOf("seed" to intArrayOf(seed))
        val labels = if (classes > 0) mapOf("label" to intArrayOf(label)) else mapOf()
        var x = state()
        interpreter.runSignature(seeds, mapOf("x" to x), "start")
        for (index in 0 until networkCalls) {
            val after = state()
            val inputs = mapOf("x" to x, "index" to intArrayOf(index)) + seeds + labels
            interpreter.runSignature(inputs, mapOf("x" to after), "step")
            x = after
            show(index, finish(x))
        }
        return finish(x)
    }

    private fun state() = Array(1) { Array(height) { Array(width) { FloatArray(stateChannels) } } }

    private fun finish(x: Any): Bitmap {
        val image = Array(1) { Array(height) { Array(width) { IntArray(channels) } } }
        interpreter.runSignature(mapOf("x" to x), mapOf("image" to image), "finish")
        val pixels = IntArray(height * width) { i ->
            val p = image[0][i / width][i % width]
            Color.rgb(p[0], p[channels / 2], p[channels - 1]) // grey: the one channel three times
        }
        return Bitmap.createBitmap(pixels, width, height, Bitmap.Config.ARGB_8888)
    }

    override fun close() = interpreter.close()
}
